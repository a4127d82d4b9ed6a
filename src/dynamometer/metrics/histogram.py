"""A histogram that takes many observations at once.

prometheus_client's `observe` takes one, with a lock and a look at each bucket. Where a request
has gathered hundreds until its end, they are given here in one call.
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

from dynamometer.errors import ArgumentError


class BatchHistogramChild:
    """The observations of one label set. Safe to use from several threads."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Nothing is observed yet.

        Args:
            bounds: the buckets' upper bounds, ascending, without +Inf.
        """
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.observe_all((value,))

    def observe_all(self, values: Sequence[float]) -> None:
        """Count each of `values`."""
        counts, bounds = self._counts, self._bounds
        with self._lock:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
            self._sum += sum(values)

    def read(self) -> tuple[list[int], float]:
        """How many were at most each bound, and altogether; and their sum."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class BatchHistogram(Collector):
    """A histogram family, as prometheus_client shows its own."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """Register the family; it has a series from the first `labels` on.

        Args:
            name: the family's.
            documentation: its HELP text.
            labelnames: the names of its labels.
            buckets: upper bounds, ascending, without +Inf.
            registry: where it is collected.

        Raises:
            ArgumentError: the bounds do not ascend.
            ValueError: the registry has a metric of that name.
        """
        self._bounds: Final = [float(bound) for bound in buckets]
        ascending = all(a < b for a, b in zip(self._bounds, self._bounds[1:], strict=False))
        if not ascending or not self._bounds:
            raise ArgumentError(f"buckets of {name} do not ascend: {self._bounds}")
        self._les = [*map(floatToGoString, self._bounds), floatToGoString(float("inf"))]
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._children: dict[tuple[str, ...], BatchHistogramChild] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def labels(self, *values: str) -> BatchHistogramChild:
        """The child of a label set, the same each time; its series are there from now on.

        Raises:
            ArgumentError: as many values as the family has labels are needed.
        """
        if len(values) != len(self._labelnames):
            raise ArgumentError(f"{self._name} has the labels {self._labelnames}, not {values}")
        with self._lock:
            child = self._children.get(values)
            if child is None:
                child = self._children[values] = BatchHistogramChild(self._bounds)
            return child

    def remove(self, *values: str) -> None:
        """Show the series of a label set no more."""
        with self._lock:
            self._children.pop(values, None)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The family without samples, by which the registry knows its names."""
        return [self._family()]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The family as it is now."""
        family = self._family()
        with self._lock:
            children = list(self._children.items())
        for values, child in children:
            counts, total = child.read()
            family.add_metric(values, list(zip(self._les, counts, strict=True)), total)
        return [family]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
