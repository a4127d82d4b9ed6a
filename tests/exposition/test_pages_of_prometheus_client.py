"""Pages that prometheus_client makes and parses are made and parsed the same here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as peer_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as peer_parse_om
from prometheus_client.parser import text_string_to_metric_families as peer_parse_text
from random_metrics import metrics, registry_of

from dynamometer.exposition.conversion import from_metric, to_metric
from dynamometer.exposition.families import Family
from dynamometer.exposition.rendering import render
from parsing import PageParser, parse

SAMPLES = Path(__file__).parent.parent / "samples"


def comparable(families: list[Metric]) -> list[tuple[object, ...]]:
    return [
        (
            family.name,
            family.type,
            family.documentation,
            family.unit,
            [(s.name, s.labels, _number(s.value)) for s in family.samples],
        )
        for family in families
    ]


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else repr(float(value))


def ours_as_theirs(families: tuple[Family, ...], *, openmetrics: bool) -> list[Metric]:
    page = render(families, openmetrics=openmetrics).decode()
    return list(peer_parse_om(page) if openmetrics else peer_parse_text(page))


@settings(max_examples=200, deadline=None)
@given(families=metrics())
def test_the_text_page_of_a_registry(families: list[Metric]) -> None:
    assert render([from_metric(family) for family in families]) == generate_latest(
        registry_of(families)
    )


@settings(max_examples=200, deadline=None)
@given(families=metrics(openmetrics=True))
def test_both_pages_of_a_registry_of_all_types(families: list[Metric]) -> None:
    registry = registry_of(families)
    ours = [from_metric(family) for family in families]
    assert render(ours) == generate_latest(registry)
    assert render(ours, openmetrics=True) == peer_openmetrics.generate_latest(registry)


@settings(max_examples=200, deadline=None)
@given(families=metrics())
def test_a_text_page_comes_back(families: list[Metric]) -> None:
    page = generate_latest(registry_of(families))
    parser = PageParser()
    ours = parser.parse(page)
    assert render(ours) == page
    assert comparable(list(map(to_metric, ours))) == comparable(
        list(peer_parse_text(page.decode()))
    )
    assert parser.parse(page) is ours


@settings(max_examples=200, deadline=None)
@given(families=metrics(openmetrics=True))
def test_an_openmetrics_page_comes_back(families: list[Metric]) -> None:
    page = peer_openmetrics.generate_latest(registry_of(families))
    parser = PageParser(openmetrics=True)
    ours = parser.parse(page)
    assert render(ours, openmetrics=True) == page
    assert render(ours) == generate_latest(registry_of(families))
    assert parser.parse(page) is ours


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.prom")), ids=lambda path: path.name)
def test_a_real_page_comes_back(path: Path) -> None:
    page = path.read_bytes()
    families = parse(page)
    assert render(families) == page
    openmetrics = render(families, openmetrics=True)
    assert render(parse(openmetrics, openmetrics=True)) == page
    assert comparable(list(peer_parse_text(page.decode()))) == comparable(
        ours_as_theirs(families, openmetrics=True)
    )


def test_a_page_scraped_while_a_histogram_is_made_comes_back(tmp_path: Path) -> None:
    """While a process writes its keys one after the other, the last buckets are missing."""
    file = MmapedDict(str(tmp_path / "histogram_1.db"))
    for label, bounds in (("old", ["1.0", "2.0", "+Inf"]), ("new", ["1.0"])):
        file.write_value(mmap_key("h", "h_sum", ["x"], [label], "help"), 3.0, 0.0)
        for bound in bounds:
            key = mmap_key("h", "h_bucket", ["x", "le"], [label, bound], "help")
            file.write_value(key, 1.0, 0.0)
    file.close()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    page = generate_latest(registry)
    assert page.count(b"+Inf") == 1
    assert page.count(b"h_count") == 2
    assert render(parse(page)) == page


def test_created_series_of_a_registry_are_left_out_whatever_the_help() -> None:
    registry = CollectorRegistry()
    for name, documentation in (("with", "words"), ("without", "")):
        Counter(name, documentation, registry=registry)
        Histogram(f"{name}_h", documentation, registry=registry)
    page = generate_latest(registry)
    assert page.count(b"_created gauge") == 4
    bare = b"".join(line for line in page.splitlines(True) if not line.startswith(b"# HELP"))
    for one in (page, bare):
        names = [family.name for family in parse(one)]
        assert names == ["with", "with_h", "without", "without_h"]
