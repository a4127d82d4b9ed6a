"""A gauge whose series can be removed, also where its values are in multiprocess files.

prometheus_client cannot remove a series from a file. There, a removed series has the value NaN,
which a gauge of this project never has otherwise, and the reader of the files omits the series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.values import MutexValue, ValueClass

from dynamometer.exposition.families import Family

_REMOVED: Final = float("nan")
_REMOVED_TEXT: Final = "NaN"


class RemovableGauge:
    """A gauge with labels; of several processes, the last one that set a series shows its value."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        *,
        registry: CollectorRegistry,
    ) -> None:
        """Register the gauge, without series; see prometheus_client's `Gauge`."""
        self._gauge = Gauge(
            name,
            documentation,
            labelnames,
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._shown: set[tuple[str, ...]] = set()

    def set(self, labels: tuple[str, ...], value: float) -> None:
        """Show a series with this value.

        Args:
            labels: the values of the labels.
            value: the value of the series.
        """
        self._gauge.labels(*labels).set(value)
        self._shown.add(labels)

    def remove(self, labels: tuple[str, ...]) -> None:
        """Remove a series, if it is shown.

        Args:
            labels: the values of the labels.
        """
        if labels in self._shown:
            self._shown.discard(labels)
            if ValueClass is MutexValue:
                self._gauge.remove(*labels)
            else:
                self._gauge.labels(*labels).set(_REMOVED)


def without_removed(family: Family) -> Family:
    """Return a family from multiprocess files without the removed series of a gauge."""
    if family.metadata.type != "gauge":
        return family
    kept = [sample for sample in family.samples if sample.value != _REMOVED_TEXT]
    if len(kept) == len(family.samples):
        return family
    return Family.of_samples(family.metadata, kept)
