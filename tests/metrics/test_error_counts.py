"""The family of a page's errors."""

from __future__ import annotations

from dynamometer.metrics.error_counts import ErrorCounts


def values(counts: ErrorCounts) -> dict[tuple[str, str], float]:
    (family,) = counts.families
    return {
        (one.series.labels["source"], one.series.labels["reason"]): float(one.value)
        for one in family.samples
    }


def test_expected_errors_begin_at_zero() -> None:
    counts = ErrorCounts()
    counts.add("engine", "failed")
    counts.show_from_zero("engine")
    assert values(counts) == {
        ("engine", "failed"): 1, ("engine", "timeout"): 0, ("engine", "invalid"): 0,
    }  # fmt: skip


def test_reported_errors_of_a_restarted_source_add_to_the_earlier_ones() -> None:
    counts = ErrorCounts()
    for reported, total in ((0, 0), (5, 5), (5, 5), (2, 5), (4, 7)):
        counts.add_reported("files", {"truncated": reported})
        assert values(counts) == {("files", "truncated"): total}


def test_the_family_is_the_same_object_until_a_count_changes() -> None:
    counts = ErrorCounts()
    counts.show_from_zero("engine")
    counts.add_reported("files", {"truncated": 1})
    before = counts.families
    counts.show_from_zero("engine")
    counts.add_reported("files", {"truncated": 1})
    assert counts.families is before
    counts.add("engine", "failed")
    assert counts.families is not before


def test_unpaired_surrogates_in_names_do_not_break_the_page() -> None:
    counts = ErrorCounts()
    for source in ("caf\udce9", "caf\udce8"):
        counts.add(source, "failed")
    assert values(counts) == {("caf?", "failed"): 2}
