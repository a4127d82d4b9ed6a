"""Pages of other programs beside `dyno exporter`: names stay, and only a bad line is dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from exporting import exporter, total
from page_server import serving
from parsing import OPENMETRICS
from stack import eventually, http

TEXT = "text/plain; version=0.0.4"


@contextlib.contextmanager
def exported(
    page: bytes, place: Path, *, content_type: str = TEXT, shown: bytes
) -> Iterator[tuple[bytes, bytes, str]]:
    """Export a page; yield the text page and the OpenMetrics page once `shown` is on them."""
    flags = ("--prefix", "", "--no-runtime-labels")
    with (
        serving(lambda *_: (content_type, page)) as address,
        exporter(place, "--engine-url", f"http://{address}", *flags) as found,
    ):

        def text() -> bytes:
            return http(f"{found.url}/metrics").body

        eventually(lambda: shown in text(), within=10, what=f"{shown!r}\n{found.log}")
        accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
        yield text(), http(f"{found.url}/metrics", **accept).body, found.log


def test_a_counter_keeps_its_name_on_the_text_page(tmp_path: Path) -> None:
    page = (
        b"# HELP nv_energy_consumption GPU energy\n# TYPE nv_energy_consumption counter\n"
        b'nv_energy_consumption{gpu="a"} 5\n'
    )
    with exported(page, tmp_path, shown=page) as (_, openmetrics, _):
        assert (
            b'# TYPE nv_energy_consumption counter\nnv_energy_consumption_total{gpu="a"} 5\n'
        ) in openmetrics


def test_an_openmetrics_page_is_read_by_its_content_type(tmp_path: Path) -> None:
    page = (
        b'# TYPE a info\na_info{v="1"} 1\n# TYPE b unknown\nb 2 1.5\n'
        b'# TYPE c counter\nc_total 3 # {trace_id="x"} 1\n# EOF\n'
    )
    with exported(page, tmp_path, content_type=OPENMETRICS, shown=b"\nc_total 3\n") as pages:
        text, openmetrics, _ = pages
        assert b'# TYPE a_info gauge\na_info{v="1"} 1\n' in text
        assert b"# TYPE b untyped\nb 2 1500\n" in text
        assert b'# TYPE a info\na_info{v="1"} 1\n' in openmetrics
        assert b'\nc_total 3 # {trace_id="x"} 1\n' in openmetrics


def test_lines_that_cannot_be_read_are_counted_and_cost_no_other(tmp_path: Path) -> None:
    page = (
        b"# HELP\n# \xff\n# TYPE a gauge\na 1\nan odd line\n"
        b'y{a="1" b="2"} 2\n# HELP z \xff\nz 3\r\n'
    )
    with exported(page, tmp_path, shown=b"\nz 3\n") as (text, openmetrics, log):
        for one in (text, openmetrics):
            assert b"\na 1\n" in one
            assert b'\ny{a="1",b="2"} 2\n' in one
        errors = [
            line
            for line in text.splitlines()
            if line.startswith(b"dynamometer_engine_scrape_errors_total")
            and b'reason="invalid"' in line
        ]
        counted = sum(float(line.rpartition(b" ")[2]) for line in errors)
        assert counted > 0
        assert counted % 4 == 0
        assert log.count("lines are dropped") == 1
        assert "4 lines are dropped; line 1 of the text page: " in log


def test_names_that_clash_in_openmetrics_lose_no_series(tmp_path: Path) -> None:
    page = (
        b"# HELP app_bytes now\n# TYPE app_bytes gauge\napp_bytes 5\n"
        b"# HELP app_bytes_total ever\n# TYPE app_bytes_total counter\napp_bytes_total 50\n"
        b"# HELP app_created mine\n# TYPE app_created gauge\napp_created 7\n"
        b"# HELP app_total ever\n# TYPE app_total counter\napp_total 9\n"
    )
    with exported(page, tmp_path, shown=page) as (text, openmetrics, _):
        assert b"# TYPE app_bytes_total unknown\napp_bytes_total 50\n" in openmetrics
        for name in ("app_bytes", "app_bytes_total", "app_created", "app_total"):
            assert f"\n{name} ".encode() in openmetrics
        assert total(text.decode(), "app_bytes_total") == 50


def test_names_that_clash_in_the_text_format_lose_no_series(tmp_path: Path) -> None:
    page = (
        b"# TYPE q_count counter\nq_count 4\n"
        b'# TYPE q histogram\nq_bucket{le="+Inf"} 7\nq_sum 1.5\nq_count{a="1"} 7\n'
        b'# TYPE s summary\ns_sum 2\ns_count 3\n# TYPE s_count gauge\ns_count{a="1"} 5\n'
        b'# TYPE h histogram\nh 4\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n'
        b"# TYPE other counter\nother 1\n"
    )
    samples = [line for line in page.splitlines() if not line.startswith(b"#")]
    with exported(page, tmp_path, shown=b"\nother 1\n") as (text, openmetrics, log):
        assert b"# TYPE other counter\nother 1\n" in text
        for sample in samples[:-1]:
            assert text.splitlines().count(sample) == 1
            assert openmetrics.splitlines().count(sample) == 1
        assert b'reason="type_conflict"' not in text
        assert "is not on the page" not in log


def test_a_series_that_two_families_of_a_page_have_is_counted(tmp_path: Path) -> None:
    page = (
        b'# TYPE q_count counter\nq_count 4\n# TYPE q histogram\nq_bucket{le="+Inf"} 7\nq_count 7\n'
    )
    with exported(page, tmp_path, shown=b"\nq_count 4\n") as (text, _, log):
        assert b'\nq_bucket{le="+Inf"} 7\n' in text
        assert b"\nq_count 7\n" not in text
        assert b'reason="overlap"' in text
        assert "q_count of engine" in log
