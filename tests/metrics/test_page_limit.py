"""A page is never larger than its limit; the largest families are omitted, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from test_metrics_page import Source, errors, families, samples

from dynamometer.exposition import merging
from dynamometer.exposition.families import Family
from dynamometer.exposition.rendering import render
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.metrics.page_limit import PageLimit


@pytest.fixture
def instruments() -> CollectorRegistry:
    return InstrumentRegistry()


class DerivedSource:
    """A source that reads other sources."""

    name = "life"
    owner = "engine"
    errors: Mapping[str, int] = MappingProxyType({})

    def families(self) -> Sequence[Family]:
        return families(family_text("state", 2))


def family_text(name: str, series: int) -> str:
    return f"# TYPE {name} gauge\n" + "".join(f'{name}{{n="{n}"}} 1\n' for n in range(series))


def test_the_largest_families_are_omitted_counted_and_logged_once(
    instruments: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    page = MetricsPage(instruments)
    page.limit_size(20_000)
    size = [1500]
    page.add(Source("one", lambda: families(family_text("small", 20) + family_text("b", size[0]))))
    page.add(Source("two", lambda: families(family_text("large", 2000) + family_text("c", 30))))
    for times in (1, 2):
        found = samples(page)
        assert len(page.render()) <= 20_000
        assert errors(found, "two", "page_bytes") == times
        assert errors(found, "one", "page_bytes") == times
        assert {name.partition("|")[0] for name in found} >= {"small", "c"}
        assert not any(name.startswith(("large", "b|")) for name in found)
    messages = [one.getMessage() for one in caplog.records if "not on the page" in one.getMessage()]
    assert sorted(message.partition(":")[0] for message in messages) == [
        "b of one is not on the page",
        "large of two is not on the page",
    ]
    size[0] = 10
    found = samples(page)
    assert found["b|n=9"] == 1
    assert errors(found, "one", "page_bytes") == 2


def test_a_page_within_the_limit_is_not_changed(instruments: CollectorRegistry) -> None:
    page = MetricsPage(instruments)
    page.add(Source("one", lambda: families(family_text("a", 2000))))
    assert "dynamometer_engine_scrape_errors_total|reason=page_bytes|source=one" not in samples(
        page
    )


def test_the_metrics_of_the_process_itself_are_never_omitted(
    instruments: CollectorRegistry,
) -> None:
    page = MetricsPage(instruments)
    page.limit_size(1)
    page.add(Source("one", lambda: families(family_text("a", 2))))
    assert errors(samples(page), "one", "page_bytes") == 1


def test_the_metrics_of_the_engines_life_are_never_omitted(instruments: CollectorRegistry) -> None:
    page = MetricsPage(instruments)
    page.limit_size(1)
    page.add(Source("files", lambda: families(family_text("a", 2))))
    page.add_derived(DerivedSource())
    found = samples(page)
    assert found["state|n=1"] == 1
    assert errors(found, "files", "page_bytes") == 1


def test_the_log_names_a_family_as_the_page_does(
    instruments: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    page = MetricsPage(instruments)
    page.limit_size(1)
    page.add(Source("one", lambda: families("# TYPE tokens_total counter\ntokens_total 1\n")))
    page.refresh()
    assert "tokens_total of one is not on the page" in caplog.text


@given(st.lists(st.lists(st.integers(1, 60), max_size=5), max_size=4), st.integers(0, 8000))
def test_what_is_left_fits_and_is_the_smallest(sizes: Sequence[Sequence[int]], most: int) -> None:
    limit = PageLimit()
    limit.max_bytes = most
    sources = [
        merging.Source(
            f"s{number}",
            families("".join(family_text(f"f{number}_{n}", one) for n, one in enumerate(parts))),
        )
        for number, parts in enumerate(sizes)
    ]
    kept = limit.apply(sources, whole=())
    assert limit.apply(sources, whole=()) is kept
    left = [family for source in kept for family in source.families]
    gone = [family for source in sources for family in source.families if family not in left]
    assert len(limit.omitted) == len(gone)
    for openmetrics in (False, True):
        assert len(render(left, openmetrics=openmetrics)) <= most or not left
    if gone:
        smallest = min(len(render([family])) for family in gone)
        assert max((len(render([family])) for family in left), default=0) <= smallest
        assert len(render(left, openmetrics=True)) + smallest > most
