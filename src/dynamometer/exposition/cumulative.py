"""Cumulative samples: those that count from the start of a process.

They are a counter's `_total`, a histogram's buckets, count and sum, and a summary's count and sum.
A summary's quantiles and the samples of all other types are not cumulative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series

Values: TypeAlias = dict[str, float]
"""The values of samples, by the text of their series."""

# For each type: the suffixes of its counts, and the suffixes of its sums.
_SUFFIXES: Final = {
    "counter": (("_total",), ()),
    "histogram": (("_bucket", "_count"), ("_sum",)),
    "summary": (("_count",), ("_sum",)),
}


def is_cumulative(metadata: Metadata) -> bool:
    """Return whether a family of this type has cumulative samples."""
    return metadata.type in _SUFFIXES


@dataclass(frozen=True, slots=True)
class Reading:
    """The cumulative samples of one label set: one counter, histogram or summary.

    Attributes:
        counts: the counts, with a histogram's buckets; only a restart lowers them.
        sums: the sums; negative observations lower a sum too.
    """

    counts: Values = field(default_factory=dict)
    sums: Values = field(default_factory=dict)

    @property
    def level(self) -> float:
        """The greatest count, which is the number of events of the label set."""
        return max(self.counts.values(), default=0.0)

    @property
    def finite(self) -> bool:
        """True if all counts are finite; a sum stays NaN after one observation of NaN."""
        return all(map(math.isfinite, self.counts.values()))

    def items(self) -> Iterator[tuple[str, float]]:
        """Return the series with their values."""
        return itertools.chain(self.counts.items(), self.sums.items())

    def same_series(self, other: Reading) -> bool:
        """Return whether another reading has the same series."""
        return self.counts.keys() == other.counts.keys() and self.sums.keys() == other.sums.keys()

    def part_of(self, other: Reading) -> bool:
        """Return whether another reading has all series of this one."""
        return self.counts.keys() <= other.counts.keys() and self.sums.keys() <= other.sums.keys()


def readings_of(family: Family, label_sets: dict[str, str]) -> Mapping[str, Reading]:
    """Return the cumulative samples by label set, in the page's order.

    A label set without such samples (a summary's quantiles alone) has an empty reading.

    Args:
        family: a family with cumulative samples (see `is_cumulative`).
        label_sets: the label set of each known series; the function adds new series.
    """
    counts, sums = _sample_names(family.metadata)
    found: dict[str, Reading] = {}
    for series, value, *_ in family.samples:
        text, name = series.text, series.name
        labels = label_sets.get(text)
        if labels is None:
            labels = label_sets[text] = family.metadata.label_set(series)
        reading = found.get(labels)
        if reading is None:
            reading = found[labels] = Reading()
        if name in counts:
            reading.counts[text] = float(value)
        elif name in sums:
            reading.sums[text] = float(value)
    return found


def with_totals(family: Family, totals: Values, missing: Values) -> Family:
    """Return a family with its totals as values, and with the series that its page does not have.

    Args:
        family: as on its page; its timestamps and exemplars stay.
        totals: the totals of series on the page; all other samples stay as they are.
        missing: the totals of series that the page does not have.
    """
    samples = [
        sample._replace(value=format_number(totals[sample.series.text]))
        if sample.series.text in totals
        else sample
        for sample in family.samples
    ]
    samples += [Sample(Series(text), format_number(value)) for text, value in missing.items()]
    return Family.of_samples(family.metadata, samples)


def without_samples(family: Family) -> Family:
    """Return a family of the same metadata without samples."""
    return Family.of_samples(family.metadata, ()) if family.sample_names else family


def cumulative_part(family: Family) -> Family:
    """Return a family without its other samples; the same object if all samples are cumulative."""
    counts, sums = _sample_names(family.metadata)
    names = counts | sums
    if family.sample_names <= names:
        return family
    samples = [sample for sample in family.samples if sample.series.name in names]
    return Family.of_samples(family.metadata, samples)


def _sample_names(metadata: Metadata) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the counts, and those of the sums."""
    name = metadata.name
    counts, sums = _SUFFIXES[metadata.type]
    return frozenset({name + suffix for suffix in counts}), frozenset({name + one for one in sums})
