"""Pages that prometheus_client makes and parses are made and parsed the same here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics import exposition as peer_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as peer_parse_om
from prometheus_client.parser import text_string_to_metric_families as peer_parse_text
from random_metrics import metrics, registry_of

from dynamometer.exposition.families import Family
from dynamometer.exposition.metrics import from_metric, to_metric
from dynamometer.exposition.openmetrics import OpenMetricsParser
from dynamometer.exposition.parse import parse
from dynamometer.exposition.render import render
from dynamometer.exposition.text import TextParser

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
    parser = TextParser()
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
    parser = OpenMetricsParser()
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
