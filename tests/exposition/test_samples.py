"""A sample line is split into the sample that it was rendered from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.rendering import render
from dynamometer.exposition.samples import Sample, openmetrics_lines, split_lines, text_lines
from dynamometer.exposition.series import Series

NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]*", fullmatch=True)
LABELS = st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"])), max_size=4)
VALUES = st.sampled_from(["1.0", "1e+06", "NaN", "+Inf", "-2"])
SAMPLES = st.tuples(st.builds(Series.of, NAMES, LABELS), VALUES).map(lambda pair: Sample(*pair))


@given(st.lists(SAMPLES, max_size=5))
def test_rendered_samples_are_split_again(samples: list[Sample]) -> None:
    assert split_lines(text_lines(samples)) == tuple(samples)
    assert openmetrics_lines(samples) == text_lines(samples)


@given(NAMES, LABELS)
def test_a_series_has_its_name_and_labels(name: str, labels: dict[str, str]) -> None:
    series = Series.of(name, labels)
    assert (series.name, series.labels) == (name, labels)
    assert list(series.labels) == sorted(labels)
    assert series.renamed("other") == Series.of("other", labels)


def test_formats_write_timestamps_and_exemplars_differently() -> None:
    sample = Sample(Series("a_total"), "1", "1.5", "1500", '{t="x"} 1')
    assert text_lines([sample]) == b"a_total 1 1500\n"
    assert openmetrics_lines([sample]) == b'a_total 1 1.5 # {t="x"} 1\n'


def test_a_family_of_lines_is_the_family_of_their_samples() -> None:
    lines = b'a_total{x="} 1",y="\\\\\\"\\n"} 1.0\na_total 2.0\n'
    metadata = Metadata("a", "counter")
    given = Family(metadata, frozenset({"a_total"}), (lines[:30], lines[30:]))
    assert given.samples == (
        Sample(Series.of("a_total", {"y": '\\"\n', "x": "} 1"}), "1.0"),
        Sample(Series.of("a_total", {}), "2.0"),
    )
    made = Family.of_samples(metadata, given.samples)
    assert (made.lines, made.sample_names) == (lines, given.sample_names)
    assert made.looks_like(given)
    assert render([made], openmetrics=True) == render([given], openmetrics=True)


def test_a_family_has_no_created_samples() -> None:
    samples = [Sample(Series("a_total"), "1"), Sample(Series("a_created"), "1.7e9")]
    family = Family.of_samples(Metadata("a", "counter"), samples)
    assert family.lines == b"a_total 1\n"
    assert family.sample_names == {"a_total"}
