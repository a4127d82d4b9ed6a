"""Relabelling adds labels and prefixes, and keeps a series' own labels."""

from __future__ import annotations

from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.exposition.rendering import render
from parsing import parse

FAMILIES = parse(
    b"# HELP x:a_total h\n# TYPE x:a_total counter\n"
    b'x:a_total{model="own"} 1\nx:a_total{z="}\\" 1"} 2\nx:a_total 3 1700000000000\n'
    b"# HELP y h\n# TYPE y histogram\n"
    b'y_bucket{le="+Inf"} 1\ny_count 1\ny_sum 1\n'
)


def test_labels_yield_to_a_series_own() -> None:
    relabelled = Relabelling({"model": "constant", "a": "b"}).apply(FAMILIES)
    assert render(relabelled) == (
        b"# HELP x:a_total h\n# TYPE x:a_total counter\n"
        b'x:a_total{a="b",model="own"} 1\n'
        b'x:a_total{a="b",model="constant",z="}\\" 1"} 2\n'
        b'x:a_total{a="b",model="constant"} 3 1700000000000\n'
        b"# HELP y h\n# TYPE y histogram\n"
        b'y_bucket{a="b",le="+Inf",model="constant"} 1\n'
        b'y_count{a="b",model="constant"} 1\ny_sum{a="b",model="constant"} 1\n'
    )
    assert b'model="constant"} 3 1700000000.0\n' in render(relabelled, openmetrics=True)


def test_a_prefix_is_added_once_or_in_place_of_another() -> None:
    added = Relabelling(add_prefix="x:").apply(FAMILIES)
    assert [family.name for family in added] == ["x:a", "x:y"]
    assert added[1].sample_names == {"x:y_bucket", "x:y_count", "x:y_sum"}
    replaced = Relabelling(add_prefix="p_", replaced_prefixes=["x:"]).apply(FAMILIES)
    assert render(replaced).splitlines()[:3] == [
        b"# HELP p_a_total h",
        b"# TYPE p_a_total counter",
        b'p_a_total{model="own"} 1',
    ]


def test_what_comes_again_is_the_same_object() -> None:
    relabelling = Relabelling({"a": "b"})
    first = relabelling.apply(FAMILIES)
    assert relabelling.apply(FAMILIES) is first
    assert relabelling.apply(FAMILIES[1:])[0] is first[1]


def test_a_filter_gives_the_same_tuple_for_the_same_families() -> None:
    chosen = FamilyFilter(Selection.of(prefixes=["x:"]))
    first = chosen.apply(FAMILIES)
    assert [family.name for family in first] == ["x:a"]
    assert chosen.apply(FAMILIES) is first
    assert chosen.apply(tuple(reversed(FAMILIES))) is first
