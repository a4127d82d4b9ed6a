"""Fold the series of client label values beyond the limit into one series; see `label_bounds`."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dynamometer.exposition.families import BUCKET_LABEL, INNER_LABELS, Family, Metadata
from dynamometer.exposition.label_bounds import LabelBounds, LongValueError
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.reuse import FamilyMap
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series


class _Folded(NamedTuple):
    """A family within the bounds, the number of its dropped series, and the first reason."""

    family: Family
    dropped: int = 0
    fault: str = ""


@dataclass(slots=True)
class _Buckets:
    """The buckets of all histograms that are added up in one label set.

    Attributes:
        labels: the labels of the sum; `le` is that of any bucket.
        bounds: the text of each upper bound by its value, of the first of these histograms.
        members: the values of each histogram by upper bound, by its label set.
    """

    labels: Mapping[str, str]
    bounds: dict[float, str] = field(default_factory=dict)
    members: dict[str, dict[float, float]] = field(default_factory=dict)


class SeriesFolding:
    """Applies the bounds of label values to the families of an engine's page.

    The timestamps and exemplars of series that are added up are dropped, and so are the quantiles
    of summaries, which cannot be added up.

    Attributes:
        dropped: the number of series that the last call dropped because a label value is too long.
        fault: the reason for the first of them.
    """

    def __init__(self, bounds: LabelBounds) -> None:
        """Fold nothing yet.

        Args:
            bounds: the bounds, shared with the other sources of the engine.
        """
        self.dropped = 0
        self.fault = ""
        self._label_bounds = bounds
        self._map = FamilyMap(self._fold)
        # The bucket bounds of each histogram that is a sum, which stay those of its first part.
        self._bucket_bounds: dict[tuple[str, str], dict[float, str]] = {}

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """Return the families within the bounds; unchanged families are the same objects."""
        results = self._map.apply(families)
        self.dropped = sum(result.dropped for result in results)
        self.fault = next((result.fault for result in results if result.fault), "")
        return tuple([result.family for result in results])

    def _fold(self, family: Family) -> _Folded:
        metadata, bounds = family.metadata, self._label_bounds
        kept: list[Sample] = []
        later: list[tuple[Sample, Series]] = []
        faults: list[str] = []
        for sample in family.samples:
            series = sample.series
            if not bounds.concerns(series.text):
                kept.append(sample)
                continue
            try:
                labels = bounds.apply(metadata.name, metadata.type, series.labels)
            except LongValueError as error:
                faults.append(str(error))
                continue
            if labels is series.labels:
                kept.append(sample)
            else:
                later.append((sample, Series.of(series.name, labels)))
        if not later and not faults:
            return _Folded(family)
        folded = Family.of_samples(metadata, [*kept, *self._add_up(metadata, later)])
        return _Folded(folded, len(faults), faults[0] if faults else "")

    def _add_up(
        self, metadata: Metadata, later: Iterable[tuple[Sample, Series]]
    ) -> Iterator[Sample]:
        """Return the sums of samples with the same folded series."""
        values: dict[Series, list[float]] = {}
        histograms: dict[str, _Buckets] = {}
        inner = INNER_LABELS.get(metadata.type, "")
        for sample, series in later:
            if inner not in series.labels:
                values.setdefault(series, []).append(float(sample.value))
            elif inner == BUCKET_LABEL:
                buckets = histograms.setdefault(metadata.label_set(series), _Buckets(series.labels))
                text = series.labels[BUCKET_LABEL]
                own = buckets.members.setdefault(metadata.label_set(sample.series), {})
                own[float(text)] = float(sample.value)
                if len(buckets.members) == 1:
                    buckets.bounds[float(text)] = text
        for labels, buckets in histograms.items():
            yield from self._add_up_buckets(metadata, labels, buckets)
        for series, numbers in values.items():
            yield Sample(series, format_number(_total(numbers)))

    def _add_up_buckets(
        self, metadata: Metadata, label_set: str, buckets: _Buckets
    ) -> Iterator[Sample]:
        """Return the sum of histograms, in buckets whose bounds never change.

        A histogram with other bounds adds to each bucket its own count up to that bound, so that
        the buckets stay cumulative.
        """
        key = (metadata.name, label_set)
        bounds = self._bucket_bounds.setdefault(key, buckets.bounds)
        members = [(sorted(own), own) for own in buckets.members.values()]
        for bound in sorted(bounds):
            total = _total([_count_up_to(bound, *member) for member in members])
            labels = {**buckets.labels, BUCKET_LABEL: bounds[bound]}
            yield Sample(Series.of(f"{metadata.name}_bucket", labels), format_number(total))


def _count_up_to(bound: float, own_bounds: Sequence[float], counts: Mapping[float, float]) -> float:
    """Return the count of the bucket at the highest own bound up to `bound`; 0 without one."""
    if bound in counts:
        return counts[bound]
    place = bisect.bisect_right(own_bounds, bound)
    return counts[own_bounds[place - 1]] if place else 0.0


def _total(values: Sequence[float]) -> float:
    """Return the exactly rounded sum, which does not depend on the order of the values."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities of two signs
        return sum(values)
