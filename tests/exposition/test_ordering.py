"""The series of a fetched page are in the same order as those of files."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.exposition.ordering import Ordering
from dynamometer.exposition.rendering import render
from parsing import PageParser, parse

RANKS = st.integers(0, 12)
SERIES = st.lists(
    st.tuples(RANKS, RANKS, RANKS, st.sampled_from(["", "1", "2", "None"])),
    unique=True, min_size=1, max_size=12,
)  # fmt: skip


def gauge(rows: list[tuple[int, int, int, str]]) -> bytes:
    return (
        b"# TYPE g gauge\n"
        + "".join(
            f'g{{dp_rank="{dp}",pp_rank="{pp}",priority="{priority}",tp_rank="{tp}"}} {number}\n'
            for number, (dp, pp, tp, priority) in enumerate(rows)
        ).encode()
    )


def ordered(text: bytes) -> bytes:
    return render(Ordering().apply(parse(text)))


@given(SERIES)
def test_the_first_series_is_the_leading_ranks_total(
    rows: list[tuple[int, int, int, str]],
) -> None:
    lines = ordered(gauge(rows)).splitlines()[2:]
    dp, pp, tp, priority = min(
        rows, key=lambda row: (row[:3], row[3] != "", row[3] == "None", row[3])
    )
    own = f'g{{dp_rank="{dp}",pp_rank="{pp}",priority="{priority}",tp_rank="{tp}"}} '
    assert lines[0].decode().startswith(own)
    assert sorted(lines) == sorted(gauge(rows).splitlines()[1:])


@given(SERIES, st.randoms(use_true_random=False))
def test_the_order_is_the_same_whatever_the_engines(
    rows: list[tuple[int, int, int, str]], random: Random
) -> None:
    once = [line.partition(b"} ")[0] for line in ordered(gauge(rows)).splitlines()]
    random.shuffle(rows)
    assert [line.partition(b"} ")[0] for line in ordered(gauge(rows)).splitlines()] == once


def test_a_histogram_of_one_label_set_stays_together() -> None:
    def histogram(rank: int) -> bytes:
        label = f'tp_rank="{rank}"'
        return (
            f'h_bucket{{le="2",{label}}} 1\nh_bucket{{le="10",{label}}} 2\n'
            f'h_bucket{{le="+Inf",{label}}} 3\nh_count{{{label}}} 3\nh_sum{{{label}}} 9\n'
        ).encode()

    header = b"# HELP h \n# TYPE h histogram\n"
    assert ordered(header + histogram(1) + histogram(0)) == header + histogram(0) + histogram(1)


def test_what_is_in_order_stays_the_same_object() -> None:
    parser, ordering = PageParser(), Ordering()
    rest = b"".join(b'# TYPE x%d gauge\nx%d{tp_rank="0"} 1\n' % (n, n) for n in range(3))
    first = parser.parse(gauge([(0, 0, 1, ""), (0, 0, 0, "")]) + rest)
    made = ordering.apply(first)
    assert [a is b for a, b in zip(first, made, strict=True)] == [False, True, True, True]
    assert ordering.apply(first) is made
    # A value has changed in an ordered family: the reordered family stays the same object.
    changed = rest.replace(b'x1{tp_rank="0"} 1', b'x1{tp_rank="0"} 2')
    second = parser.parse(gauge([(0, 0, 1, ""), (0, 0, 0, "")]) + changed)
    again = ordering.apply(second)
    assert [a is b for a, b in zip(made, again, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize(
    "text",
    [
        b'# TYPE t gauge\nt{tp_rank="1"} 1 1700000000000\nt{tp_rank="0"} 1\n',
        b"# TYPE e gauge\n",
        b"plain 1\n",
    ],
)
def test_what_is_not_ours_to_order_stays(text: bytes) -> None:
    families = parse(text)
    assert Ordering().apply(families) == families
