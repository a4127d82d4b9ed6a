"""Bounds of histograms, by NVIDIA Dynamo's rule."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.metrics.buckets import FrontendBuckets, log_spaced_bounds
from dynamometer.settings import DEFAULT_BUCKET_RANGES
from dynamometer.variables import BucketRange

SAMPLE = Path(__file__).parent.parent / "samples" / "dynamo-metrics.tsv"
USUAL = FrontendBuckets.of(DEFAULT_BUCKET_RANGES)


@pytest.mark.parametrize(
    ("family", "bounds"),
    [
        ("request_duration_seconds", USUAL.request_duration),
        ("time_to_first_token_seconds", USUAL.time_to_first_token),
        ("inter_token_latency_seconds", USUAL.inter_token_latency),
        ("input_sequence_tokens", USUAL.input_sequence),
        ("cached_tokens", USUAL.input_sequence),
        ("output_sequence_tokens", USUAL.output_sequence),
    ],
)
def test_without_variables_bounds_are_those_of_a_real_dynamo(
    family: str, bounds: tuple[float, ...]
) -> None:
    with SAMPLE.open(encoding="utf-8") as file:
        theirs = {row["name"]: row["buckets"] for row in csv.DictReader(file, delimiter="\t")}
    expected = theirs[f"dynamo_frontend_{family}"].split()
    assert [*map(float, expected)] == [*bounds, float("inf")]


def test_bounds_that_round_to_the_same_are_one() -> None:
    assert log_spaced_bounds(BucketRange(1.0, 1.04, 5)) == (0.0, 1.0)
    assert log_spaced_bounds(BucketRange(1.0, 100.0, 3)) == (0.0, 10.0, 100.0)
    assert log_spaced_bounds(BucketRange(1.0, 100.0, 1)) == (0.0,)


ends = st.floats(1e-100, 1e100)


@given(st.tuples(ends, ends).filter(lambda pair: pair[0] != pair[1]), st.integers(1, 512))
def test_bounds_ascend_whatever_the_range(pair: tuple[float, float], count: int) -> None:
    least, greatest = sorted(pair)
    bounds = log_spaced_bounds(BucketRange(least, greatest, count))
    assert bounds[0] == 0
    assert len(bounds) <= count
    assert all(a < b < float("inf") for a, b in pairwise(bounds))
    assert count == 1 or bounds[-1] == pytest.approx(greatest, rel=0.06)
