"""What a family of an engine of several ranks says, each thing once.

Data-parallel ranks are engines beside each other: their values add up. Ranks of any other
parallelism (tensor, pipeline, expert, context) work on the same requests and tell the same of them:
of series that differ in those alone the leading one counts, whose numbers are the lowest. With
data-parallel attention each data-parallel rank leads on a tensor rank of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dynamometer.exposition.families import Family
from dynamometer.exposition.ordering import SortKey, sort_key
from dynamometer.exposition.series import end_of_series, split_series
from dynamometer.names import labels

_RANK: Final = "_rank"
_TYPES: Final = frozenset({"counter", "gauge", "unknown"})


@dataclass(frozen=True, slots=True)
class RankValue:
    """One value of a family.

    Attributes:
        dp_rank: the data-parallel rank that it is of; empty where the engine names none.
        value: finite, and not below 0.
    """

    dp_rank: str
    value: float


class LeadingSeries:
    """Reads one family again and again; which of its series count is found out once."""

    def __init__(self, *, totals_by_priority: bool) -> None:
        """Nothing is read yet.

        Args:
            totals_by_priority: whether a series with an empty `priority` is the total of those
                that differ from it in that label alone; else it is one of them.
        """
        self._totals_by_priority = totals_by_priority
        self._family: Family | None = None
        self._values: Sequence[RankValue] = ()
        self._series: list[bytes] = []
        self._chosen: Sequence[tuple[int, str]] = ()

    def read(self, family: Family | None) -> Sequence[RankValue]:
        """The values that count; none where there is no family, or only nonsense.

        Args:
            family: as it is now; the same object where it has not changed.
        """
        if family is not self._family:
            self._family = family
            self._values = () if family is None else self._read(family)
        return self._values

    def _read(self, family: Family) -> Sequence[RankValue]:
        if family.metadata.type not in _TYPES:
            return ()
        split = [line.rpartition(b" ") for line in family.lines.split(b"\n") if line]
        series = [left for left, _, _ in split]
        texts = [right for _, _, right in split]
        if any(not left.endswith(b"}") and b" " in left for left in series):
            series, texts = _with_timestamps(family)
        if series != self._series:
            self._series = series
            self._chosen = self._choose(family.metadata.sample_name, series)
        values = [RankValue(dp_rank, _number(texts[index])) for index, dp_rank in self._chosen]
        return tuple([one for one in values if math.isfinite(one.value) and one.value >= 0])

    def _choose(self, name: str, all_series: Sequence[bytes]) -> Sequence[tuple[int, str]]:
        """Which of the series count: their numbers, and their data-parallel ranks."""
        leading: dict[tuple[tuple[str, str], ...], tuple[SortKey, int, dict[str, str]]] = {}
        for index, series in enumerate(all_series):
            text = series.decode()
            sample, pairs = split_series(text)
            if sample != name:
                continue
            own = {label: value for label, value in pairs if not _is_replica(label)}
            key, order = tuple(own.items()), sort_key(text)
            if key not in leading or order < leading[key][0]:
                leading[key] = (order, index, own)
        found = [(index, own) for _, index, own in leading.values()]
        if self._totals_by_priority:
            totals = {_without_priority(own) for _, own in found if not own.get(labels.PRIORITY)}
            found = [
                (index, own)
                for index, own in found
                if not own.get(labels.PRIORITY) or _without_priority(own) not in totals
            ]
        return [(index, own.get(labels.DP_RANK, "")) for index, own in found]


def _with_timestamps(family: Family) -> tuple[list[bytes], list[bytes]]:
    series, texts = [], []
    for line in family.lines.decode().split("\n"):
        if line and not line.startswith("#"):
            end = end_of_series(line)
            series.append(line[:end].encode())
            texts.append(line[end + 1 :].partition(" ")[0].encode())
    return series, texts


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_replica(label: str) -> bool:
    return label.endswith(_RANK) and label != labels.DP_RANK


def _without_priority(own: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple([pair for pair in own.items() if pair[0] != labels.PRIORITY])
