"""Several sources, one page: every family once, no series twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as peer_parse

from dynamometer.exposition.merging import Merger, Omission, OmissionReason, Source
from dynamometer.exposition.rendering import Renderer, render
from parsing import parse

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


class Page:
    """The page of merged sources."""

    def __init__(self) -> None:
        self.merger = Merger()
        self._renderer = Renderer()

    def update(self, sources: Sequence[Source]) -> bool:
        """Merge the sources; return whether the page changed."""
        before = self.merger.families
        return self.merger.merge(sources) is not before

    def render(self, *, openmetrics: bool = False, gzip: bool = False) -> bytes:
        return self._renderer.render(self.merger.families, openmetrics=openmetrics, gzip=gzip)


def test_the_first_source_wins_and_histograms_stay_whole() -> None:
    merger = Merger()
    assert render(merger.merge(SOURCES)) == MERGED


def test_omissions_are_reported() -> None:
    merger = Merger()
    merger.merge(SOURCES)
    assert set(merger.omissions) == {
        Omission("page", "files", "a", OmissionReason.OVERLAP),
        Omission("page", "files", "h", OmissionReason.OVERLAP),
        Omission("page", "files", "g", OmissionReason.TYPE_CONFLICT),
    }


def test_names_that_clash_in_the_text_format_are_a_conflict() -> None:
    merger = Merger()
    first = Source("one", parse(b"# TYPE a_total counter\na_total 1\n"))
    other = Source("two", parse(b"# TYPE a_total gauge\na_total 1\n# TYPE b gauge\nb 1\n"))
    assert [family.name for family in merger.merge([first, other])] == ["a", "b"]
    assert [part.reason for part in merger.omissions] == [OmissionReason.TYPE_CONFLICT]
    assert [family.name for family in merger.merge([other, first])] == ["a_total", "b"]
    assert merger.omissions[0].source == "one"


GAUGE = b"# HELP go_alloc_bytes now\n# TYPE go_alloc_bytes gauge\ngo_alloc_bytes 1\n"
COUNTER = (
    b"# HELP go_alloc_bytes_total ever\n# TYPE go_alloc_bytes_total counter\n"
    b"go_alloc_bytes_total 2\n"
)


def test_a_gauge_and_a_counter_of_one_name_are_on_both_pages() -> None:
    """The page of every Go process has both; OpenMetrics shows the counter without its type."""
    for text in (GAUGE + COUNTER, COUNTER + GAUGE):
        page = Page()
        families = parse(text)
        page.update([Source("go", families)])
        assert page.render() == text
        assert not page.merger.omissions
        other = page.render(openmetrics=True)
        assert samples(other) == {"go_alloc_bytes": 1, "go_alloc_bytes_total": 2}
        assert b"# TYPE go_alloc_bytes gauge\n" in other
        assert b"# HELP go_alloc_bytes_total ever\n# TYPE go_alloc_bytes_total unknown\n" in other
        before = page.render()
        page.update([Source("go", tuple(families))])
        assert page.render() is before


# Pages of families that clash in OpenMetrics alone.
CLASHES = {
    "a gauge that is called as a created series": (
        b"# HELP a_created mine\n# TYPE a_created gauge\na_created 5\n",
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n",
    ),
    "a gauge that is called as a histogram's created series": (
        b"# HELP h_created mine\n# TYPE h_created gauge\nh_created 5\n",
        b'# HELP h h\n# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 2\nh_count 1\n',
    ),
    "a gauge that is called as a bare counter's samples": (
        b"# HELP a_total mine\n# TYPE a_total gauge\na_total 5\n",
        b"# HELP a h\n# TYPE a counter\na 1\n",
    ),
    "counters with and without the suffix": (
        b"# HELP a_total new\n# TYPE a_total counter\na_total 5\n",
        b"# HELP a old\n# TYPE a counter\na 5\n",
    ),
    "a summary and a counter of one name": (
        b'# HELP a s\n# TYPE a summary\na{quantile="0.5"} 1\na_sum 2\na_count 1\n',
        b"# HELP a_total h\n# TYPE a_total counter\na_total 1\n",
    ),
}


@pytest.mark.parametrize("case", CLASHES)
def test_families_that_clash_in_openmetrics_lose_no_sample_there(case: str) -> None:
    for texts in (CLASHES[case], CLASHES[case][::-1]):
        page = Page()
        sources = [Source(f"source {number}", parse(one)) for number, one in enumerate(texts)]
        page.update(sources)
        text = page.render()
        assert text == b"".join(texts)
        assert not page.merger.omissions
        assert samples(page.render(openmetrics=True)) == samples(text)
        together = [family for source in sources for family in source.families]
        assert render(together, openmetrics=True) == page.render(openmetrics=True)
        page.update([Source(one.name, tuple(one.families)) for one in sources])
        assert page.render() is text
        page.update(sources[:1])  # alone, its type is back
        kind = texts[0].split(b"# TYPE ")[1].split()[1]
        assert b" %s\n" % kind in page.render(openmetrics=True)


def test_an_info_and_a_gauge_of_one_name_are_on_both_pages() -> None:
    info = b'# HELP a i\n# TYPE a info\na_info{v="1"} 1\n# EOF\n'
    gauge = b"# HELP a g\n# TYPE a gauge\na 5\n"
    page = Page()
    page.update([Source("info", parse(info, openmetrics=True)), Source("gauge", parse(gauge))])
    for one in (page.render(), page.render(openmetrics=True)):
        assert b'\na_info{v="1"} 1\n' in one
        assert b"\na 5\n" in one
    assert len(list(peer_parse(page.render(openmetrics=True).decode()))) == 2


def test_exemplars_stay_with_their_type() -> None:
    """OpenMetrics does not allow exemplars at a sample of type unknown."""
    counter = b'# TYPE a counter\na_total 1 1.5 # {t="x"} 1\n# EOF\n'
    page = Page()
    page.update([Source("counter", parse(counter, openmetrics=True))])
    assert b'# {t="x"}' in page.render(openmetrics=True)
    gauge = parse(b"# TYPE a gauge\na 5\n")
    page.update([Source("counter", parse(counter, openmetrics=True)), Source("gauge", gauge)])
    assert b"\na_total 1 1.5\n" in page.render(openmetrics=True)
    assert list(peer_parse(page.render(openmetrics=True).decode()))


def samples(page: bytes) -> dict[str, float]:
    """Return the samples of a page; a strict parser must accept an OpenMetrics page."""
    if page.endswith(b"# EOF\n"):
        list(peer_parse(page.decode()))
    lines = [line for line in page.decode().splitlines() if not line.startswith("#")]
    found = {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}
    assert len(found) == len(lines)
    return found


def test_of_two_sources_each_family_of_one_name_is_joined_with_its_own() -> None:
    other = (GAUGE + COUNTER).replace(b"bytes 1", b'bytes{x="1"} 3').replace(b" 2\n", b" 4\n")
    merger = Merger()
    families = merger.merge([Source("one", parse(GAUGE + COUNTER)), Source("two", parse(other))])
    assert render(families) == GAUGE + b'go_alloc_bytes{x="1"} 3\n' + COUNTER
    assert [part.reason for part in merger.omissions] == [OmissionReason.OVERLAP]


def test_nothing_new_is_nothing_done() -> None:
    page = Page()
    assert page.update(SOURCES)
    pages = [page.render(), page.render(openmetrics=True), page.render(gzip=True)]
    assert not page.update(SOURCES)
    assert not page.update([Source(s.name, tuple(s.families)) for s in SOURCES])
    again = [page.render(), page.render(openmetrics=True), page.render(gzip=True)]
    assert all(one is other for one, other in zip(pages, again, strict=True))


def test_only_what_changed_is_merged_again() -> None:
    merger = Merger()
    before = {family.name: family for family in merger.merge(SOURCES)}
    (changed,) = parse(b"# HELP only page\n# TYPE only gauge\nonly 2\n")
    families = [changed if family.name == "only" else family for family in HTTP]
    after = {f.name: f for f in merger.merge([SOURCES[0], Source("page", families)])}
    assert [name for name in after if after[name] is not before[name]] == ["only"]


def test_a_source_that_goes_takes_its_families_along() -> None:
    page = Page()
    page.update(SOURCES)
    assert page.update(SOURCES[:1])
    assert page.render() == render(FILES)


def test_a_gauge_histogram_of_two_sources_has_each_header_once() -> None:
    page = (
        '# TYPE g gaugehistogram\ng_bucket{{le="+Inf",x="{0}"}} 2\n'
        'g_gcount{{x="{0}"}} 2\ng_gsum{{x="{0}"}} 3\n# EOF\n'
    )
    sources = [Source(x, parse(page.format(x).encode(), openmetrics=True)) for x in ("1", "2")]
    assert render(Merger().merge(sources)) == (
        b"# HELP g \n# TYPE g histogram\n"
        b'g_bucket{le="+Inf",x="1"} 2\ng_bucket{le="+Inf",x="2"} 2\n'
        b'# HELP g_gcount \n# TYPE g_gcount gauge\ng_gcount{x="1"} 2\ng_gcount{x="2"} 2\n'
        b'# HELP g_gsum \n# TYPE g_gsum gauge\ng_gsum{x="1"} 3\ng_gsum{x="2"} 3\n'
    )


def test_an_omission_names_the_present_source() -> None:
    families = parse(b"# TYPE a counter\na 1\n# TYPE a_total gauge\na_total 5\n")
    merger = Merger()
    for name in ("first", "second"):
        merger.merge([Source("other", parse(b"# TYPE a gauge\na 1\n")), Source(name, families)])
        assert Omission(name, "other", "a", OmissionReason.TYPE_CONFLICT) in merger.omissions


def test_timestamps_of_one_source_stay_in_both_formats() -> None:
    stamped = parse(b'# TYPE a_total counter\na_total{x="9"} 1 1700000000000\n')
    merger = Merger()
    families = merger.merge([Source("files", FILES), Source("stamped", stamped)])
    assert b'a_total{x="9"} 1 1700000000000\n' in render(families)
    assert b'a_total{x="9"} 1 1700000000.0\n' in render(families, openmetrics=True)
    assert b'a_total{x="1"} 1\n' in render(families, openmetrics=True)


def test_sources_with_different_values_of_a_label_are_joined_without_comparison() -> None:
    one, two = (
        f'# TYPE g gauge\ng{{w="{w}",x="1"}} {w}\n'
        f'# TYPE h histogram\nh_bucket{{le="+Inf",w="{w}"}} {w}\nh_count{{w="{w}"}} {w}\n'
        for w in (1, 2)
    )
    families = parse(one.encode()), parse(two.encode())
    labelled = [Source(f"{w}", parts, f'w="{w}"') for w, parts in enumerate(families, 1)]
    compared = [Source(source.name, source.families) for source in labelled]
    merger = Merger()
    assert render(merger.merge(labelled)) == render(Merger().merge(compared))
    assert merger.omissions == ()


def test_sources_of_which_one_has_no_label_are_compared() -> None:
    families = parse(b'# TYPE g gauge\ng{w="1"} 1\n')
    merger = Merger()
    merged = merger.merge([Source("one", families, 'w="1"'), Source("two", families)])
    assert render(merged).count(b'g{w="1"}') == 1
    assert merger.omissions == (Omission("two", "one", "g", OmissionReason.OVERLAP),)
    same = [Source("one", families, 'w="1"'), Source("two", families, 'w="1"')]
    assert render(Merger().merge(same)).count(b'g{w="1"}') == 1
