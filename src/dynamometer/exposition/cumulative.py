"""What of a family counts from the beginning of a process: its cumulative samples.

A counter's `_total`, a histogram's buckets, count and sum, a summary's count and sum. Not a
summary's quantiles, nor anything of another type; `_created` samples are in no family of ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from dynamometer.exposition.families import INNER_LABELS, Family, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.series import end_of_series, labels_text, metric_name, split_series

Values: TypeAlias = dict[str, float]
"""Values of samples by their series."""

# Of counts, and of sums.
_SUFFIXES: Final = {
    "counter": (("_total",), ()),
    "histogram": (("_bucket", "_count"), ("_sum",)),
    "summary": (("_count",), ("_sum",)),
}
_EXEMPLAR: Final = " # {"


def is_cumulative(metadata: Metadata) -> bool:
    """Whether a family has cumulative samples."""
    return metadata.type in _SUFFIXES


@dataclass(frozen=True, slots=True)
class Reading:
    """The cumulative samples of one label set: one counter, histogram or summary.

    Attributes:
        counts: values by series, a histogram's buckets included; only a restart lowers them.
        sums: values by series; negative observations lower a sum too.
    """

    counts: Values = field(default_factory=dict)
    sums: Values = field(default_factory=dict)

    @property
    def level(self) -> float:
        """The greatest count: how often the label set counted."""
        return max(self.counts.values(), default=0.0)

    @property
    def finite(self) -> bool:
        """Whether all counts are finite; one observation of NaN spoils a sum for ever."""
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
        family: with cumulative samples (`is_cumulative`).
        label_sets: those of known series; new ones are added.
    """
    metadata = family.metadata
    counts, sums = _beginnings(metadata)
    found: dict[str, Reading] = {}
    for line in _lines(family.chunks):
        series, rest = _split(line)
        labels = label_sets.get(series)
        if labels is None:
            labels = label_sets[series] = _label_set(series, metadata)
        reading = found.get(labels)
        if reading is None:
            reading = found[labels] = Reading()
        if line.startswith(counts):
            reading.counts[series] = float(rest.partition(" ")[0])
        elif line.startswith(sums):
            reading.sums[series] = float(rest.partition(" ")[0])
    return found


def _label_set(series: str, metadata: Metadata) -> str:
    """What the samples of one counter, histogram or summary have in common, as a text."""
    inner = INNER_LABELS.get(metadata.type)
    if inner is None:
        return series
    _, labels = split_series(series)
    return labels_text({name: value for name, value in labels if name != inner})


def continued(family: Family, totals: Values, missing: Values) -> Family:
    """Return a family with other values, and with samples that are missing from its page.

    Args:
        family: as on its page; its timestamps and exemplars stay.
        totals: the values to show, by series; all other samples stay as they are.
        missing: the values of series that the page does not have.
    """
    more = "".join([f"{series} {format_number(value)}\n" for series, value in missing.items()])
    other = family.openmetrics_chunks
    return Family(
        family.metadata,
        family.sample_names | {series.partition("{")[0] for series in missing},
        ((_replaced(family.chunks, totals) + more).encode(),),
        None if other is None else ((_replaced(other, totals) + more).encode(),),
    )


def without_lines(family: Family) -> Family:
    """Return a family's metadata alone; the family itself if it has no samples."""
    return Family(family.metadata, frozenset(), ()) if family.chunks else family


def cumulative_part(family: Family) -> Family:
    """A family without the samples that are not cumulative; itself where it has none."""
    metadata = family.metadata
    quantiles = {metadata.name, metric_name(metadata.name)}
    if metadata.type != "summary" or quantiles.isdisjoint(family.sample_names):
        return family
    other = family.openmetrics_chunks
    beginnings = (*_beginnings(metadata)[0], *_beginnings(metadata)[1])
    return Family(
        metadata,
        family.sample_names - quantiles,
        (_beginning(family.chunks, beginnings),),
        None if other is None else (_beginning(other, beginnings),),
    )


def _beginnings(metadata: Metadata) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the lines of counts begin with, and those of sums."""
    name = metric_name(metadata.name)
    counts, sums = _SUFFIXES[metadata.type]
    return tuple([name + suffix for suffix in counts]), tuple([name + suffix for suffix in sums])


def _beginning(chunks: Sequence[bytes], beginnings: tuple[str, ...]) -> bytes:
    return "".join([f"{line}\n" for line in _lines(chunks) if line.startswith(beginnings)]).encode()


def _replaced(chunks: Sequence[bytes], totals: Values) -> str:
    lines = []
    for line in _lines(chunks):
        series, rest = _split(line)
        if (total := totals.get(series)) is not None:
            _, space, behind = rest.partition(" ")
            lines.append(f"{series} {format_number(total)}{space}{behind}\n")
        else:
            lines.append(f"{line}\n")
    return "".join(lines)


def _lines(chunks: Sequence[bytes]) -> Iterator[str]:
    return filter(None, b"".join(chunks).decode().split("\n"))


def _split(line: str) -> tuple[str, str]:
    """Series and the rest; the last brace ends a series where no exemplar is behind it."""
    end = end_of_series(line) if _EXEMPLAR in line else line.rfind("}") + 1 or line.find(" ")
    return line[:end], line[end + 1 :]
