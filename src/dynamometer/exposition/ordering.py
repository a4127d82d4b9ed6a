"""The order of the series in a family: the leading rank first, and always the same order.

An endpoint picker that reads one series of a family takes the first, which must be the series of
the leading rank. Numbers sort as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from dynamometer.exposition.families import INNER_LABELS, Family
from dynamometer.exposition.reuse import FamilyMap
from dynamometer.exposition.series import Series

_MAX_DIGITS: Final = 18
SortKey: TypeAlias = tuple[tuple[tuple[int, str], ...], tuple[tuple[str, int, str], ...], str]


def sort_key(series: Series) -> SortKey:
    """Return the sort key of a series: its ranks, then its labels, then its metric's name."""
    return _key(series.name, series.labels)


class Ordering:
    """Puts the series of fetched families in order; remembers the order of each family."""

    def __init__(self) -> None:
        self._orders: dict[str, tuple[int, Sequence[int] | None]] = {}
        self._families = FamilyMap(self._ordered)

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """Return the families in order; a family that is in order is the same object."""
        return self._families.apply(families)

    def _ordered(self, family: Family) -> Family:
        samples = family.samples
        if any(sample.seconds for sample in samples):
            return family  # samples of one series with timestamps stay in the order of time
        shape = hash(tuple([sample.series.text for sample in samples]))
        known, order = self._orders.get(family.name, (None, None))
        if known != shape:
            order = _order([sample.series for sample in samples])
            self._orders[family.name] = (shape, order)
        if order is None:
            return family
        return Family.of_samples(family.metadata, [samples[index] for index in order])


def _order(all_series: Sequence[Series]) -> Sequence[int] | None:
    """Return the order of series; None if they are in order.

    The samples of one histogram or summary stay together, in their order.
    """
    inner = INNER_LABELS.values()
    keys = [
        _key("", {label: value for label, value in series.labels.items() if label not in inner})
        for series in all_series
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return None if order == list(range(len(keys))) else order


def _key(name: str, labels: Mapping[str, str]) -> SortKey:
    parts = [(label, *_natural(value)) for label, value in labels.items()]
    ranks = [(number, text) for label, number, text in parts if _is_rank(label)]
    return tuple(ranks), tuple(parts), name


@lru_cache(1024)
def _is_rank(label: str) -> bool:
    return label == "rank" or label.endswith("_rank")


@lru_cache(4096)
def _natural(value: str) -> tuple[int, str]:
    """Return the sort key of a label's value: empty values (totals) first, then numbers by size."""
    if not value:
        return -1, ""
    if value.isdecimal() and value.isascii() and len(value) <= _MAX_DIGITS:
        return int(value), value
    return 10**_MAX_DIGITS, value
