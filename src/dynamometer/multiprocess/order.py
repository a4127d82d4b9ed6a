"""In which order the series of a family stand: the leading rank first, and always the same.

Who reads one series of a family (an endpoint picker) takes the first one that it meets, so
that must be the leading rank's. Numbers sort as numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, TypeAlias

from dynamometer.exposition.series import split_series

_MANY_DIGITS: Final = 18
SortKey: TypeAlias = tuple[tuple[tuple[int, str], ...], tuple[tuple[str, int, str], ...], str]


def sort_key(series: str) -> SortKey:
    """The key that a series sorts by: its ranks, then its labels, then its metric's name.

    Args:
        series: in our own form.
    """
    name, labels = split_series(series)
    parts = [_natural(value) for _, value in labels]
    ranks = tuple([part for (label, _), part in zip(labels, parts, strict=True) if _is_rank(label)])
    return (
        ranks,
        tuple([(label, *part) for (label, _), part in zip(labels, parts, strict=True)]),
        name,
    )


@lru_cache(1024)
def _is_rank(label: str) -> bool:
    return label == "rank" or label.endswith("_rank")


@lru_cache(4096)
def _natural(value: str) -> tuple[int, str]:
    """Numbers first and by their size; an empty value, which stands for a total, before all."""
    if not value:
        return -1, ""
    if value.isdecimal() and value.isascii() and len(value) <= _MANY_DIGITS:
        return int(value), value
    return 10**_MANY_DIGITS, value
