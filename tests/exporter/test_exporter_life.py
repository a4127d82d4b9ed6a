"""Totals and gauges over an engine's life: killed, restarted, ended; from files and its page."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.http.addresses import free_port
from dynamometer.names import engine_state
from exporting import Exporter, Sglang, exporter, gauges, sglang, total
from stack import eventually

pytestmark = [pytest.mark.engine, pytest.mark.slow]

REQUESTS = "sglang:num_requests_total"
# Counters and histograms that must equal the number of requests.
COUNTED = (REQUESTS, "sglang:e2e_request_latency_seconds_count")
TOKENS = "sglang:generation_tokens_total"
# The same, concluded from it: one number an engine.
LOAD = "dynamometer_engine_generation_tokens_total"
TOKENS_EACH = 4
ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


class Exporters:
    """An exporter by processes, page or directory; by directory also in another pid namespace."""

    def __init__(self, place: Path, port: int, directory: Path | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self.name = f"sglang-{port}"
        url = f"http://127.0.0.1:{port}"
        explicit = ("--multiproc-dir", str(directory), "--engine-url", url)
        self.all: dict[str, Exporter] = {}
        found = [("processes", (), ()), ("page", ("--engine-url", url), ())]
        given = [("directory", explicit, ()), ("elsewhere", explicit, ELSEWHERE)]
        for kind, flags, before in [*found, *(given if directory else [])]:
            (place / kind).mkdir()
            running = exporter(place / kind, *flags, before=before)
            self.all[kind] = self._stack.enter_context(running)

    def engine(self, kind: str) -> str:
        return self.name if kind == "processes" else "engine"

    def close(self) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[tuple[str, Exporter]]:
        return iter(self.all.items())

    def page(self, kind: str) -> str:
        """Return the page without the series of other engines on this machine."""
        page = self.all[kind].page()
        keys = [line.split(" ")[0] for line in page.splitlines() if not line.startswith("#")]
        assert len(keys) == len(set(keys)), "a series twice"
        list(parse(page))
        if kind != "processes":
            return page
        up = next(line for line in page.splitlines() if f'_up{{engine="{self.name}"' in line)
        worker_id = up.partition('worker_id="')[2].partition('"')[0]
        return (
            "\n".join(
                line for line in page.splitlines() if line.startswith("#") or worker_id in line
            )
            + "\n"
        )

    def await_totals(self, requests: int) -> None:
        for kind, running in self:

            def complete(kind: str = kind) -> bool:
                with contextlib.suppress(AssertionError):
                    page = self.page(kind)
                    assert total(page, TOKENS) == total(page, LOAD) == requests * TOKENS_EACH
                    return all(total(page, family) == requests for family in COUNTED)
                return False

            eventually(
                complete,
                within=20,
                what=f"{kind}: {requests} requests; {self.found(kind)}\n{running.log}",
            )

    def found(self, kind: str) -> dict[str, float]:
        found = {}
        for family in (*COUNTED, TOKENS, LOAD):
            with contextlib.suppress(AssertionError):
                found[family] = total(self.page(kind), family)
        return found

    def await_ready(self) -> None:
        for kind, running in self:
            running.wait_until_ready(self.engine(kind))

    def assert_gone(self, requests: int, since: float) -> None:
        """503 with a reason within 3 seconds, totals there, gauges gone."""
        for kind, running in self:
            eventually(
                lambda kind=kind, running=running: not running.ready(self.engine(kind)),  # type: ignore[misc]
                within=max(0.1, since + 3 - time.monotonic()),
                what=f"{kind} not ready any more:\n{running.log}",
            )
            status, body = running.health()
            assert status == 503
            assert body["reasons"][self.engine(kind)]
        self.await_totals(requests)
        for kind, running in self:
            eventually(
                lambda kind=kind: not gauges(self.page(kind)) | loads(self.page(kind)),  # type: ignore[misc]
                within=6,
                what=f"{kind} without gauges: {gauges(self.page(kind))}\n{running.log}",
            )


def loads(page: str) -> set[str]:
    """Return the gauges of the load signals on the page."""
    about_its_life = {value for key, value in vars(engine_state).items() if key.isupper()}
    return gauges(page, "dynamometer_engine_") - about_its_life


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


def test_totals_go_on_and_gauges_go_over_the_engines_life(tiny_model: Path, place: Path) -> None:
    port, directory = free_port(), place / "metrics"
    exporters = Exporters(place, port, directory)  # the directory is there late
    directory.mkdir()

    def engine(log: str, **environment: str) -> contextlib.AbstractContextManager[Sglang]:
        return sglang(tiny_model, place / log, port=port, **environment)

    try:
        with engine("1.log", PROMETHEUS_MULTIPROC_DIR=str(directory)) as first:
            exporters.await_ready()
            first.complete(3, TOKENS_EACH)
            exporters.await_totals(3)
            for kind in exporters.all:
                assert len(gauges(exporters.page(kind))) > 10
                assert len(loads(exporters.page(kind))) == 6  # of the engine, and of its rank
            first.kill()
            killed = time.monotonic()
            exporters.assert_gone(3, killed)
        with engine("2.log", PROMETHEUS_MULTIPROC_DIR=str(directory)) as second:
            exporters.await_ready()
            exporters.await_totals(3)
            second.complete(2, TOKENS_EACH)
            exporters.await_totals(5)
            for kind in exporters.all:
                assert len(gauges(exporters.page(kind))) > 10
            second.terminate()
            exporters.assert_gone(5, time.monotonic())
    finally:
        exporters.close()


@pytest.mark.slow
def test_it_is_found_again_with_files_in_another_place(tiny_model: Path, place: Path) -> None:
    port = free_port()
    exporters = Exporters(place, port)
    try:
        with sglang(tiny_model, place / "1.log", port=port) as first:
            exporters.await_ready()
            first.complete(3, TOKENS_EACH)
            exporters.await_totals(3)
            scheduler = next(
                p for p in first.process.descendants() if "sglang::scheduler" in p.cmdline()[0]
            )
            scheduler.kill()
            found = exporters.all["processes"]
            eventually(
                lambda: not found.ready(exporters.name), within=3, what="the scheduler missed"
            )
            assert (
                f"{scheduler.pid} (sglang::scheduler)" in found.health()[1]["reasons"][first.name]
            )
            first.process.wait(within=30)  # SGLang ends all when its scheduler is gone
            exporters.assert_gone(3, time.monotonic())
        with sglang(tiny_model, place / "2.log", port=port) as second:
            exporters.await_ready()
            second.complete(2, TOKENS_EACH)
            exporters.await_totals(5)
            second.terminate()  # and it removes its files
            exporters.assert_gone(5, time.monotonic())
        with sglang(tiny_model, place / "3.log", port=port) as third:
            exporters.await_ready()
            third.complete(1, TOKENS_EACH)
            exporters.await_totals(6)
    finally:
        exporters.close()


@pytest.mark.slow
def test_what_the_rust_server_counts_on_its_page_alone_is_there_too(
    tiny_model: Path, place: Path
) -> None:
    port = free_port()
    with (
        sglang(tiny_model, place / "rust.log", port=port, SGLANG_RUST_SERVER="1") as engine,
        exporter(place) as found,
    ):
        found.wait_until_ready(engine.name)
        engine.complete(3, TOKENS_EACH)

        def complete() -> bool:
            with contextlib.suppress(AssertionError):
                page = found.page()
                return total(page, TOKENS) == total(page, LOAD) == 3 * TOKENS_EACH
            return False

        eventually(complete, within=10, what=f"its tokens\n{found.log}")
        page = found.page()
        families = {family.name for family in parse(page)}
        own = {f.name for f in parse(engine.page()) if f.name.startswith("sglang:")}
        assert families >= own
        keys = [line.split(" ")[0] for line in page.splitlines() if not line.startswith("#")]
        assert len(keys) == len(set(keys))
