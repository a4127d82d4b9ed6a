"""A real Prometheus stores the same series from a parsed page and from the page rendered again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamometer.exposition.merging import Merger, Source
from dynamometer.exposition.parser import Parser
from dynamometer.exposition.rendering import render
from page_server import serving
from parsing import OPENMETRICS
from prometheus import needs_prometheus, running_prometheus
from stack import eventually

pytestmark = needs_prometheus

TEXT = "text/plain; version=0.0.4"
# Pages that Prometheus reads, by content type.
PAGES = {
    "bare headers": (TEXT, b"# HELP\n# TYPE\n#HELP\n#\na 1\n"),
    "a comment that is not UTF-8": (TEXT, b"# \xff\na 1\n"),
    "no comma": (TEXT, b'a{x="1" y="2"} 2\n'),
    "white space": (TEXT, b'a { x = "1" , } 3\nb\t4\t1\n'),
    "no white space": (TEXT, b'b-1\na{x="1"}5'),
    "labels of Prometheus' own kind": (TEXT, b'a{__x="1"} 1\n'),
    "escapes": (TEXT, b'a{x="\\q\\\\\\n\\""} 1\n'),
    "numbers": (TEXT, b"a 1.\nb .5\nc infinity\nd nan\ne +1e3\nf -Inf\n"),
    "names": (TEXT, b"a:b 1\n_c 2\n"),
    "a type behind samples": (TEXT, b"a 1\n# TYPE a counter\na_total 2\n"),
    "a counter with both names": (TEXT, b"# TYPE a counter\na 1\na_total 2\n"),
    "a Go page": (
        TEXT,
        b"# TYPE a_bytes gauge\na_bytes 5\n# TYPE a_bytes_total counter\na_bytes_total 50\n",
    ),
    "a gauge like a created series": (
        TEXT,
        b"# TYPE a_created gauge\na_created 5\n# TYPE a_total counter\na_total 1\n",
    ),
    "gauges like a histogram's other names": (
        TEXT,
        (
            b'# TYPE h histogram\nh_bucket{le="+Inf"} 2\nh_sum 1\nh_count 2\n'
            b"# TYPE h_created gauge\nh_created 7\n# TYPE h_total counter\nh_total 3\n"
            b"# TYPE h_info gauge\nh_info 1\n"
        ),
    ),
    "counters that clash": (
        TEXT,
        (
            b"# TYPE a counter\na 1\n# TYPE a_total counter\na_total 2\n"
            b"# TYPE a_total_total counter\na_total_total 3\n"
        ),
    ),
    "an info": (OPENMETRICS, b'# TYPE a info\na_info{v="1"} 1\n# EOF\n'),
    "an info without its suffix": (OPENMETRICS, b'# TYPE a info\na{v="1"} 1\n# EOF'),
    "a stateset": (OPENMETRICS, b'# TYPE a stateset\na{a="x"} 1\na{a="y"} 0\n# EOF\n'),
    "a gaugehistogram": (
        OPENMETRICS,
        b'# TYPE a gaugehistogram\na_bucket{le="+Inf"} 2\na_gcount 2\na_gsum 3\n# EOF\n',
    ),
    "a gaugehistogram beside a counter": (
        OPENMETRICS,
        (
            b'# TYPE a gaugehistogram\na_bucket{le="+Inf"} 2\na_gcount 2\na_gsum 3\n'
            b"# TYPE a_total counter\na_total 2\n# EOF\n"
        ),
    ),
    "an info beside a gauge and a counter": (
        OPENMETRICS,
        (
            b'# TYPE a info\na_info{v="1"} 1\n# TYPE a_info_total counter\na_info_total 2\n'
            b"# TYPE a gauge\na 3\n# EOF\n"
        ),
    ),
    "timestamps and exemplars": (
        OPENMETRICS,
        b'# TYPE a counter\na_total 1 1.5 # {x="1"} 2 3\n# TYPE b unknown\nb 1 1e9\n# EOF\n',
    ),
    "a unit": (OPENMETRICS, b"# TYPE a_s gauge\n# UNIT a_s s\na_s 1\n# EOF\n"),
    "types twice": (OPENMETRICS, b"# TYPE a gauge\n# TYPE a counter\na 1\n# EOF\n"),
}

Stored = set[tuple[str, str]]


@dataclass(frozen=True)
class Scraped:
    """Return the series that Prometheus has stored for one target."""

    error: str
    series: Stored


def scrape(pages: Sequence[tuple[str, bytes]], place: Path) -> Sequence[Scraped]:
    """Let a Prometheus scrape each page, given with its content type."""

    with serving(lambda path, _: pages[int(path[1:])]) as address:
        return _scrape(address, len(pages), place)


def _scrape(address: str, count: int, place: Path) -> Sequence[Scraped]:
    jobs = [
        {
            "job_name": str(number),
            "metrics_path": f"/{number}",
            "honor_timestamps": False,
            "static_configs": [{"targets": [address]}],
        }
        for number in range(count)
    ]
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    with running_prometheus(settings, place) as server:

        def scraped() -> bool:
            found = server.query("count(count by (job) (up))")
            return bool(found) and found[0]["value"][1] == str(count)

        eventually(scraped, within=30, what="all scraped")
        targets = server.ask("targets")["activeTargets"]
        errors = {one["labels"]["job"]: str(one["lastError"]) for one in targets}
        series: dict[str, Stored] = {str(number): set() for number in range(count)}
        for one in server.query('{instance!="", __name__!~"up|scrape_.*"}'):
            labels = one["metric"]
            own = {name: labels[name] for name in sorted(labels) if name not in ("job", "instance")}
            series[labels["job"]].add((json.dumps(own), str(one["value"][1])))
        return [Scraped(errors[job], series[job]) for job in series]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Sequence[Scraped]]:
    """Prometheus' reading of each page, and of the text and OpenMetrics pages rendered from it."""
    pages: list[tuple[str, bytes]] = []
    for content_type, page in PAGES.values():
        families = Merger().merge([Source("page", Parser().parse(page, content_type).families)])
        pages += [(content_type, page), (TEXT, render(families))]
        pages += [(OPENMETRICS, render(families, openmetrics=True))]
    found = scrape(pages, tmp_path_factory.mktemp("prometheus"))
    return {name: found[3 * number : 3 * number + 3] for number, name in enumerate(PAGES)}


@pytest.mark.parametrize("case", PAGES)
def test_prometheus_stores_the_same(case: str, scraped: Mapping[str, Sequence[Scraped]]) -> None:
    given, text, openmetrics = scraped[case]
    assert (given.error, text.error, openmetrics.error) == ("", "", "")
    assert text.series == given.series
    assert given.series
    assert openmetrics.series == given.series
