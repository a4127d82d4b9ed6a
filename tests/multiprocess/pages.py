"""prometheus_client's page of a directory, and comparisons of pages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from dynamometer.multiprocess import MultiprocessDirectory


class Merged(Collector):
    """Return prometheus_client's merge of some files."""

    def __init__(self, files: list[Path]) -> None:
        self._files = [str(file) for file in files]

    def collect(self) -> Iterable[Metric]:
        metrics: Iterable[Metric] = MultiProcessCollector.merge(self._files)
        return metrics


def peer_page(directory: Path) -> bytes:
    """Return prometheus_client's page of all files in a tree."""
    registry = CollectorRegistry()
    registry.register(Merged(sorted(directory.rglob("*.db"))))
    return generate_latest(registry)


def assert_same_lines(ours: bytes, theirs: bytes) -> None:
    """Assert that sorted lines are equal; sums may differ in their last bit."""
    mine, other = sorted(ours.splitlines()), sorted(theirs.splitlines())
    if mine == other:
        return
    assert [line.rpartition(b" ")[0] for line in mine] == [
        line.rpartition(b" ")[0] for line in other
    ]
    for left, right in zip(mine, other, strict=True):
        if left != right:
            assert not left.startswith(b"#"), (left, right)
            a, b = (float(line.rpartition(b" ")[2]) for line in (left, right))
            assert b in (math.nextafter(a, math.inf), math.nextafter(a, -math.inf)), (left, right)


def assert_parsers_accept(directory: MultiprocessDirectory) -> None:
    """Assert that prometheus_client's parsers accept the page in both formats."""
    list(parse_text(directory.render().decode()))
    list(parse_openmetrics(directory.render(openmetrics=True).decode()))


def values(page: bytes) -> dict[str, float]:
    """Return the value of each series of a page."""
    return {
        series: float(value)
        for line in page.decode().splitlines()
        if not line.startswith("#")
        for series, _, value in [line.rpartition(" ")]
    }
