"""The same observations make the same page as prometheus_client's histogram."""

from __future__ import annotations

import threading

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from dynamometer.errors import ArgumentError
from dynamometer.metrics.histogram import BatchHistogram

BOUNDS = (0.0, 0.5, 1, 2.5, 100)


def ours(registry: CollectorRegistry) -> BatchHistogram:
    return BatchHistogram(
        "latency_seconds", "How long.", ("model",), buckets=BOUNDS, registry=registry
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.lists(st.integers(-4, 500).map(lambda quarter: quarter / 4), max_size=9),
        )
    )
)
def test_a_page_is_that_of_prometheus_client(batches: list[tuple[str, list[float]]]) -> None:
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = ours(mine)
    prometheus_client.disable_created_metrics()
    other = Histogram("latency_seconds", "How long.", ["model"], buckets=BOUNDS, registry=theirs)
    for model, values in batches:
        batch = histogram.labels(model).batch()
        for value in values:
            batch.add(value)
        histogram.labels(model).observe_batch(batch)
        child = other.labels(model)
        for value in values:
            child.observe(value)
    expected = generate_latest(theirs)
    prometheus_client.enable_created_metrics()
    assert generate_latest(mine) == expected


def test_one_observation_is_counted_as_one() -> None:
    registry = CollectorRegistry()
    ours(registry).labels("m").observe(0.5)
    assert registry.get_sample_value("latency_seconds_bucket", {"model": "m", "le": "0.5"}) == 1
    assert registry.get_sample_value("latency_seconds_bucket", {"model": "m", "le": "0.0"}) == 0
    assert registry.get_sample_value("latency_seconds_sum", {"model": "m"}) == 0.5


def test_a_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    ours(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        ours(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        prometheus_client.Counter("latency_seconds_count", "", registry=registry)


def test_an_invalid_histogram_is_refused() -> None:
    registry = CollectorRegistry()
    for bounds in ((), (1, 1), (2, 1)):
        with pytest.raises(ArgumentError, match="must be in ascending order"):
            BatchHistogram("x", "", buckets=bounds, registry=registry)
    with pytest.raises(ArgumentError, match="has the labels"):
        ours(registry).labels()


def test_series_that_are_removed_are_gone() -> None:
    registry = CollectorRegistry()
    histogram = ours(registry)
    histogram.labels("m").observe(1)
    histogram.remove("m")
    histogram.remove("never")
    assert b"model=" not in generate_latest(registry)


def test_no_observation_of_several_threads_is_missing() -> None:
    registry = CollectorRegistry()
    histogram = ours(registry)

    def work() -> None:
        for _ in range(2000):
            batch = histogram.labels("m").batch()
            for value in (0.1, 1.0, 3.0):
                batch.add(value)
            histogram.labels("m").observe_batch(batch)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        generate_latest(registry)
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("latency_seconds_count", {"model": "m"}) == 4 * 2000 * 3
