"""Select the series of a family, so that ranks with the same values count once.

Data-parallel ranks serve different requests, so each of them has values of its own. Ranks of any
other parallelism (tensor, pipeline, expert, context) work on the same requests and report the same
values: of the series that differ only in these ranks, the one with the lowest ranks is selected.
With data-parallel attention, each data-parallel rank reports from its own tensor rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dynamometer.exposition.families import Family
from dynamometer.exposition.ordering import SortKey, sort_key
from dynamometer.exposition.series import Series
from dynamometer.names import labels

_RANK: Final = "_rank"
_TYPES: Final = frozenset({"counter", "gauge", "unknown"})


@dataclass(frozen=True, slots=True)
class RankValue:
    """One value of a family.

    Attributes:
        dp_rank: the data-parallel rank of the series; empty if the series has no such label.
        value: the value, finite and at least 0.
    """

    dp_rank: str
    value: float


class LeadingSeries:
    """A reader of one family, which selects the series again only if the series have changed."""

    def __init__(self, *, totals_by_priority: bool, ignored_type: str = "") -> None:
        """Create a reader.

        Args:
            totals_by_priority: True if a series with an empty `priority` is the total of the
                series that differ only in this label; False if it is one of them.
            ignored_type: the `engine_type` of series that are not selected.
        """
        self._totals_by_priority = totals_by_priority
        self._ignored_type = ignored_type
        self._family: Family | None = None
        self._values: Sequence[RankValue] = ()
        self._series: Sequence[Series] = ()
        self._selected: Sequence[tuple[int, str]] = ()

    def read(self, family: Family | None) -> Sequence[RankValue]:
        """Return the values of the selected series; none if the family is missing or not valid.

        Args:
            family: the current family; the same object if no value has changed.
        """
        if family is not self._family:
            self._family = family
            self._values = () if family is None else self._read(family)
        return self._values

    def _read(self, family: Family) -> Sequence[RankValue]:
        if family.metadata.type not in _TYPES:
            return ()
        samples = family.samples
        series = [sample.series for sample in samples]
        if series != self._series:
            self._series = series
            self._selected = self._select(family.metadata.sample_name, series)
        values = [RankValue(rank, _number(samples[index].value)) for index, rank in self._selected]
        return tuple([one for one in values if math.isfinite(one.value) and one.value >= 0])

    def _select(self, name: str, all_series: Sequence[Series]) -> Sequence[tuple[int, str]]:
        """Return the indexes of the selected series, each with its data-parallel rank."""
        leading: dict[tuple[tuple[str, str], ...], tuple[SortKey, int, dict[str, str]]] = {}
        for index, series in enumerate(all_series):
            if series.name != name:
                continue
            if self._ignored_type and series.labels.get(labels.ENGINE_TYPE) == self._ignored_type:
                continue
            kept = {
                label: value for label, value in series.labels.items() if not _is_shared_rank(label)
            }
            key, order = tuple(kept.items()), sort_key(series)
            if key not in leading or order < leading[key][0]:
                leading[key] = (order, index, kept)
        found = [(index, kept) for _, index, kept in leading.values()]
        if self._totals_by_priority:
            totals = {_without_priority(kept) for _, kept in found if not kept.get(labels.PRIORITY)}
            found = [
                (index, kept)
                for index, kept in found
                if not kept.get(labels.PRIORITY) or _without_priority(kept) not in totals
            ]
        return [(index, kept.get(labels.DP_RANK, "")) for index, kept in found]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_shared_rank(label: str) -> bool:
    return label.endswith(_RANK) and label != labels.DP_RANK


def _without_priority(kept: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple([pair for pair in kept.items() if pair[0] != labels.PRIORITY])
