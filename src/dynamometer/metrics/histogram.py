"""A histogram that counts many observations in one call.

prometheus_client's `observe` counts one observation: each call takes a lock and searches all
buckets. A request counts thousands of observations in a batch of its own, whose size is constant,
and one call adds the batch to the histogram. The counts are prometheus_client's values, which are
in files where PROMETHEUS_MULTIPROC_DIR is set.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from prometheus_client.values import MutexValue, ValueClass

from dynamometer.errors import ArgumentError
from dynamometer.exposition.families import BUCKET_LABEL

_TYPE: Final = "histogram"


class Batch:
    """Observations that are added to a histogram later. Not safe to use from several threads.

    Attributes:
        counts: the number of observations in each bucket, the last one for +Inf.
        total: the sum of the observations.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Create the counts of each bucket.

        Args:
            bounds: the upper bounds of the buckets, ascending, without +Inf.
        """
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class BatchHistogramChild:
    """The counts of one label set. Safe to use from several threads."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(
        self, bounds: Sequence[float], counts: Sequence[MutexValue], total: MutexValue
    ) -> None:
        """Store the values.

        Args:
            bounds: the upper bounds of the buckets, ascending, without +Inf.
            counts: the number of observations in each bucket, with +Inf.
            total: the sum of the observations.
        """
        self._bounds = bounds
        self._counts = counts
        self._sum = total
        self._lock = threading.Lock()  # `read` sees all or no values of one call

    def observe(self, value: float) -> None:
        """Count one observation."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)].inc(1)
            self._sum.inc(value)

    def batch(self) -> Batch:
        """Return an empty batch with the buckets of this histogram."""
        return Batch(self._bounds)

    def observe_batch(self, batch: Batch) -> None:
        """Count the observations of `batch`."""
        with self._lock:
            for number, count in enumerate(batch.counts):
                if count:
                    self._counts[number].inc(count)
            self._sum.inc(batch.total)

    def read(self) -> tuple[list[float], float]:
        """Return the cumulative counts of the buckets, with +Inf, and the sum of the values."""
        with self._lock:
            return list(accumulate(count.get() for count in self._counts)), self._sum.get()


class BatchHistogram(Collector):
    """A histogram family with the output of prometheus_client's histogram."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """Register the family, which has no series before the first call of `labels`.

        Args:
            name: the name of the family.
            documentation: the HELP text.
            labelnames: the names of the labels.
            buckets: the upper bounds of the buckets, ascending, without +Inf.
            registry: the registry that collects the family.

        Raises:
            ArgumentError: The bounds are not in ascending order.
            ValueError: The registry has a metric of that name.
        """
        self._bounds: Final = [float(bound) for bound in buckets]
        ascending = all(a < b for a, b in zip(self._bounds, self._bounds[1:], strict=False))
        if not ascending or not self._bounds:
            raise ArgumentError(
                f"the buckets of {name} must be in ascending order, not {self._bounds}"
            )
        self._le_values = [*map(floatToGoString, self._bounds), floatToGoString(float("inf"))]
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._children: dict[tuple[str, ...], BatchHistogramChild] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def labels(self, *values: str) -> BatchHistogramChild:
        """Return the counts of a label set: the same object each time, on the page from now on.

        Raises:
            ArgumentError: The number of values differs from the number of labels.
        """
        if len(values) != len(self._labelnames):
            raise ArgumentError(
                f"{self._name} has the labels {self._labelnames}: pass a value for each, "
                f"not {values}"
            )
        with self._lock:
            child = self._children.get(values)
            if child is None:
                child = self._children[values] = self._create(values)
            return child

    def _create(self, values: tuple[str, ...]) -> BatchHistogramChild:
        """Create the counts of a label set at 0."""
        name, names = self._name, self._labelnames
        counts = [
            ValueClass(
                _TYPE, name, f"{name}_bucket", (*names, BUCKET_LABEL), (*values, le),
                self._documentation,
            )
            for le in self._le_values
        ]  # fmt: skip
        total = ValueClass(_TYPE, name, f"{name}_sum", names, values, self._documentation)
        return BatchHistogramChild(self._bounds, counts, total)

    def remove(self, *values: str) -> None:
        """Remove the series of a label set."""
        with self._lock:
            self._children.pop(values, None)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the family without samples, from which the registry takes its names."""
        return [self._family()]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the current family."""
        family = self._family()
        with self._lock:
            children = list(self._children.items())
        for values, child in children:
            counts, total = child.read()
            family.add_metric(values, list(zip(self._le_values, counts, strict=True)), total)
        return [family]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
