"""Several sources, one page: every family once, no series twice."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as peer_parse

from dynamometer.exposition.filters import Selection
from dynamometer.exposition.merge import Clash, LeftOut, Merger, Source
from dynamometer.exposition.merged_page import MergedPage
from dynamometer.exposition.parse import parse
from dynamometer.exposition.render import render

FILES = parse(
    b"# HELP a_total files\n# TYPE a_total counter\n"
    b'a_total{x="1"} 1\na_total{x="2"} 2\n'
    b"# HELP h files\n# TYPE h histogram\n"
    b'h_bucket{le="1.0",x="1"} 1\nh_bucket{le="+Inf",x="1"} 1\nh_count{x="1"} 1\nh_sum{x="1"} 1\n'
    b"# HELP g files\n# TYPE g gauge\ng 1\n"
)
HTTP = parse(
    b"# HELP a_total page\n# TYPE a_total counter\n"
    b'a_total{x="2"} 20\na_total{x="3"} 30\n'
    b"# HELP h page\n# TYPE h histogram\n"
    b'h_bucket{le="2.0",x="1"} 9\nh_bucket{le="+Inf",x="1"} 9\nh_count{x="1"} 9\nh_sum{x="1"} 9\n'
    b'h_bucket{le="2.0",x="2"} 8\nh_bucket{le="+Inf",x="2"} 8\nh_count{x="2"} 8\nh_sum{x="2"} 8\n'
    b"# HELP g page\n# TYPE g histogram\n"
    b"# HELP only page\n# TYPE only gauge\nonly 1\n"
)
MERGED = (
    b"# HELP a_total files\n# TYPE a_total counter\n"
    b'a_total{x="1"} 1\na_total{x="2"} 2\na_total{x="3"} 30\n'
    b"# HELP h files\n# TYPE h histogram\n"
    b'h_bucket{le="1.0",x="1"} 1\nh_bucket{le="+Inf",x="1"} 1\nh_count{x="1"} 1\nh_sum{x="1"} 1\n'
    b'h_bucket{le="2.0",x="2"} 8\nh_bucket{le="+Inf",x="2"} 8\nh_count{x="2"} 8\nh_sum{x="2"} 8\n'
    b"# HELP g files\n# TYPE g gauge\ng 1\n"
    b"# HELP only page\n# TYPE only gauge\nonly 1\n"
)
SOURCES = [Source("files", FILES), Source("page", HTTP)]


def test_the_first_source_wins_and_histograms_stay_whole() -> None:
    merger = Merger()
    assert render(merger.merge(SOURCES)) == MERGED


def test_what_is_left_out_is_told() -> None:
    merger = Merger()
    merger.merge(SOURCES)
    assert set(merger.left_out) == {
        LeftOut("page", "files", "a", Clash.OVERLAP, 1),
        LeftOut("page", "files", "h", Clash.OVERLAP, 1),
        LeftOut("page", "files", "g", Clash.TYPE_CONFLICT, 0),
    }


def test_names_that_clash_in_the_text_format_are_a_conflict() -> None:
    merger = Merger()
    first = Source("one", parse(b"# TYPE a_total counter\na_total 1\n"))
    other = Source("two", parse(b"# TYPE a_total gauge\na_total 1\n# TYPE b gauge\nb 1\n"))
    assert [family.name for family in merger.merge([first, other])] == ["a", "b"]
    assert [part.clash for part in merger.left_out] == [Clash.TYPE_CONFLICT]
    assert [family.name for family in merger.merge([other, first])] == ["a_total", "b"]
    assert merger.left_out[0].source == "one"


GAUGE = b"# HELP go_alloc_bytes now\n# TYPE go_alloc_bytes gauge\ngo_alloc_bytes 1\n"
COUNTER = (
    b"# HELP go_alloc_bytes_total ever\n# TYPE go_alloc_bytes_total counter\n"
    b"go_alloc_bytes_total 2\n"
)


def test_a_gauge_and_a_counter_of_one_name_are_both_on_the_text_page() -> None:
    """As on the page of every Go process; in OpenMetrics they clash, and the first stands."""
    for text, shown in ((GAUGE + COUNTER, "gauge"), (COUNTER + GAUGE, "counter")):
        families = parse(text)
        page = MergedPage()
        page.update([Source("go", families)])
        assert page.render() == text
        assert not page.left_out
        (other,) = peer_parse(page.render(openmetrics=True).decode())
        assert (other.name, other.type) == ("go_alloc_bytes", shown)
        before = page.render()
        page.update([Source("go", tuple(families))])
        assert page.render() is before


def test_of_two_sources_each_family_of_one_name_is_joined_with_its_own() -> None:
    other = (GAUGE + COUNTER).replace(b"bytes 1", b'bytes{x="1"} 3').replace(b" 2\n", b" 4\n")
    merger = Merger()
    families = merger.merge([Source("one", parse(GAUGE + COUNTER)), Source("two", parse(other))])
    assert render(families) == GAUGE + b'go_alloc_bytes{x="1"} 3\n' + COUNTER
    assert [part.clash for part in merger.left_out] == [Clash.OVERLAP]


def test_nothing_new_is_nothing_done() -> None:
    page = MergedPage()
    assert page.update(SOURCES)
    pages = [page.render(), page.render(openmetrics=True), page.compressed()]
    assert not page.update(SOURCES)
    assert not page.update([Source(s.name, tuple(s.families)) for s in SOURCES])
    again = [page.render(), page.render(openmetrics=True), page.compressed()]
    assert all(one is other for one, other in zip(pages, again, strict=True))


def test_only_what_changed_is_merged_again() -> None:
    merger = Merger()
    before = {family.name: family for family in merger.merge(SOURCES)}
    (changed,) = parse(b"# HELP only page\n# TYPE only gauge\nonly 2\n")
    families = [changed if family.name == "only" else family for family in HTTP]
    after = {f.name: f for f in merger.merge([SOURCES[0], Source("page", families)])}
    assert [name for name in after if after[name] is not before[name]] == ["only"]


def test_a_source_that_goes_takes_its_families_along() -> None:
    page = MergedPage()
    page.update(SOURCES)
    assert page.update(SOURCES[:1])
    assert page.render() == render(FILES)


def test_a_selection_is_kept_when_other_families_change() -> None:
    page = MergedPage()
    page.update(SOURCES)
    selection = Selection.of(names=["a_total"])
    before = page.compressed(selection)
    (changed,) = parse(b"# HELP only page\n# TYPE only gauge\nonly 2\n")
    families = [changed if family.name == "only" else family for family in HTTP]
    assert page.update([SOURCES[0], Source("page", families)])
    assert page.compressed(selection) is before


def test_timestamps_of_one_source_stay_in_both_formats() -> None:
    stamped = parse(b'# TYPE a_total counter\na_total{x="9"} 1 1700000000000\n')
    merger = Merger()
    families = merger.merge([Source("files", FILES), Source("stamped", stamped)])
    assert b'a_total{x="9"} 1 1700000000000\n' in render(families)
    assert b'a_total{x="9"} 1 1700000000.0\n' in render(families, openmetrics=True)
    assert b'a_total{x="1"} 1\n' in render(families, openmetrics=True)


def test_a_gauge_that_is_called_as_a_created_series_is_on_the_text_page_alone() -> None:
    """In OpenMetrics the name is the counter's, be it of another source, before or behind it."""
    gauge = parse(b"# HELP a_created mine\n# TYPE a_created gauge\na_created 5\n")
    counter = parse(b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n")
    for families in ((gauge, counter), (counter, gauge)):
        page = MergedPage()
        sources = [Source(f"source {number}", one) for number, one in enumerate(families)]
        page.update(sources)
        text = page.render()
        assert b"a_created 5\n" in text
        assert b"a_total 1\n" in text
        other = page.render(openmetrics=True)
        assert [family.name for family in peer_parse(other.decode())] == ["a"]
        assert not page.left_out
        page.update([Source(one.name, tuple(one.families)) for one in sources])
        assert page.render() is text
    page.update([Source("gauge", gauge)])
    assert b"a_created 5\n" in page.render(openmetrics=True)
