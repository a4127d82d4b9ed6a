"""The order of the series in a family: the leading rank first, and always the same order.

An endpoint picker that reads one series of a family takes the first, which must be the series of
the leading rank. Numbers sort as numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from dynamometer.exposition.families import INNER_LABELS, Family
from dynamometer.exposition.reuse import FamilyMap
from dynamometer.exposition.series import end_of_series, labels_text, split_series

_COMMENT = "#"
_MANY_DIGITS: Final = 18
SortKey: TypeAlias = tuple[tuple[tuple[int, str], ...], tuple[tuple[str, int, str], ...], str]


def sort_key(series: str) -> SortKey:
    """Return the sort key of a series: its ranks, then its labels, then its metric's name.

    Args:
        series: the left part of a sample line.
    """
    name, labels = split_series(series)
    parts = [_natural(value) for _, value in labels]
    ranks = tuple([part for (label, _), part in zip(labels, parts, strict=True) if _is_rank(label)])
    return (
        ranks,
        tuple([(label, *part) for (label, _), part in zip(labels, parts, strict=True)]),
        name,
    )


class Ordering:
    """Orders the families of one page again and again; what is in order stays as it is."""

    def __init__(self) -> None:
        self._orders: dict[str, tuple[int, Sequence[int] | None]] = {}
        self._derived = FamilyMap(self._ordered)

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """The families, in order; the same objects where they come again."""
        return self._derived.apply(families)

    def _ordered(self, family: Family) -> Family:
        """The lines of a histogram or summary of one label set stay together, in their order."""
        chunks, other = family.chunks, family.openmetrics_chunks
        text = b"".join(chunks).decode()
        if other is not None or text.startswith(_COMMENT) or f"\n{_COMMENT}" in text:
            return family
        lines = [f"{line}\n" for line in text.split("\n") if line]
        series = [line[: end_of_series(line)] for line in lines]
        shape = hash(tuple(series))
        known, order = self._orders.get(family.name, (None, None))
        if known != shape:
            order = _order(series)
            self._orders[family.name] = (shape, order)
        if order is None:
            return family
        ordered = "".join([lines[index] for index in order]).encode()
        return Family(family.metadata, family.sample_names, (ordered,))


def _order(all_series: Sequence[str]) -> Sequence[int] | None:
    """The order of the lines; None where they are in it."""
    keys = []
    for series in all_series:
        _, labels = split_series(series)
        own = {label: value for label, value in labels if label not in INNER_LABELS.values()}
        keys.append(sort_key(f"{{{labels_text(own)}}}"))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return None if order == list(range(len(keys))) else order


@lru_cache(1024)
def _is_rank(label: str) -> bool:
    return label == "rank" or label.endswith("_rank")


@lru_cache(4096)
def _natural(value: str) -> tuple[int, str]:
    """Return the sort key of a label's value: empty values (totals) first, then numbers by size."""
    if not value:
        return -1, ""
    if value.isdecimal() and value.isascii() and len(value) <= _MANY_DIGITS:
        return int(value), value
    return 10**_MANY_DIGITS, value
