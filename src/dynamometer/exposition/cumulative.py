"""What of a family counts from the beginning of a process: its cumulative samples.

A counter's `_total`, a histogram's buckets, count and sum, a summary's count and sum. Not a
summary's quantiles, nor anything of another type; `_created` samples are in no family of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.series import end_of_series, labels_text, metric_name, split_series

_SUFFIXES: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_count", "_sum"),
    "summary": ("_count", "_sum"),
}
_INNER_LABELS: Final = {"histogram": "le", "summary": "quantile"}
_EXEMPLAR: Final = " # {"


def is_cumulative(metadata: Metadata) -> bool:
    """Whether a family has cumulative samples."""
    return metadata.type in _SUFFIXES


def may_fall(series: str, metadata: Metadata) -> bool:
    """Whether a cumulative series is a sum, which negative observations lower."""
    return metadata.type != "counter" and series.startswith(f"{metric_name(metadata.name)}_sum")


def values_of(family: Family) -> dict[str, float]:
    """The cumulative samples: their values by their series, in the page's order."""
    beginnings = _beginnings(family.metadata)
    lines = [line for line in _lines(family.chunks) if line.startswith(beginnings)]
    if family.openmetrics_chunks is None:  # no timestamps: only a value is behind a series
        parts = [line.rpartition(" ") for line in lines]
        return {series: float(value) for series, _, value in parts}
    split = [_split(line) for line in lines]
    return {series: float(rest.partition(" ")[0]) for series, rest in split}


def label_sets(family: Family) -> Iterable[str]:
    """The label set of each sample (`label_set`), cumulative or not."""
    return [label_set(_split(line)[0], family.metadata) for line in _lines(family.chunks)]


def label_set(series: str, metadata: Metadata) -> str:
    """What the samples of one counter, histogram or summary have in common, as a text."""
    inner = _INNER_LABELS.get(metadata.type)
    if inner is None:
        return series
    _, labels = split_series(series)
    return labels_text({name: value for name, value in labels if name != inner})


def continued(family: Family, offsets: Mapping[str, float], missing: Sequence[str]) -> Family:
    """A family with offsets added to its samples, and samples that it does not have itself.

    Args:
        family: as on its page, with timestamps and exemplars, which stay.
        offsets: by series.
        missing: series that the page does not have, and whose offsets are all there is of them.
    """
    more = "".join([f"{series} {format_number(offsets[series])}\n" for series in missing])
    other = family.openmetrics_chunks
    return Family(
        family.metadata,
        family.sample_names | {series.partition("{")[0] for series in missing},
        ((_added(family.chunks, offsets) + more).encode(),),
        None if other is None else ((_added(other, offsets) + more).encode(),),
    )


def without_lines(family: Family) -> Family:
    """A family's metadata alone."""
    return Family(family.metadata, frozenset(), ())


def cumulative_part(family: Family) -> Family:
    """A family without the samples that are not cumulative; itself where it has none."""
    metadata = family.metadata
    quantiles = {metadata.name, metric_name(metadata.name)}
    if metadata.type != "summary" or quantiles.isdisjoint(family.sample_names):
        return family
    other = family.openmetrics_chunks
    beginnings = _beginnings(metadata)
    return Family(
        metadata,
        family.sample_names - quantiles,
        (_beginning(family.chunks, beginnings),),
        None if other is None else (_beginning(other, beginnings),),
    )


def _beginnings(metadata: Metadata) -> tuple[str, ...]:
    """What the lines of cumulative samples begin with."""
    name = metric_name(metadata.name)
    return tuple([name + suffix for suffix in _SUFFIXES[metadata.type]])


def _beginning(chunks: Sequence[bytes], beginnings: tuple[str, ...]) -> bytes:
    return "".join([f"{line}\n" for line in _lines(chunks) if line.startswith(beginnings)]).encode()


def _added(chunks: Sequence[bytes], offsets: Mapping[str, float]) -> str:
    lines = []
    for line in _lines(chunks):
        series, rest = _split(line)
        if offset := offsets.get(series):
            value, space, behind = rest.partition(" ")
            lines.append(f"{series} {format_number(float(value) + offset)}{space}{behind}\n")
        else:
            lines.append(f"{line}\n")
    return "".join(lines)


def _lines(chunks: Sequence[bytes]) -> Iterator[str]:
    return filter(None, b"".join(chunks).decode().split("\n"))


def _split(line: str) -> tuple[str, str]:
    """Series and the rest; the last brace ends a series where no exemplar is behind it."""
    end = end_of_series(line) if _EXEMPLAR in line else line.rfind("}") + 1 or line.find(" ")
    return line[:end], line[end + 1 :]
