"""A fetched page's series in the order that ours have: the leading rank first, always the same."""

from __future__ import annotations

from collections.abc import Sequence

from dynamometer.exposition.families import Family
from dynamometer.exposition.series import end_of_series, labels_text, split_series
from dynamometer.exposition.unchanged import Derived
from dynamometer.multiprocess.order import sort_key

_INNER_LABELS = frozenset({"le", "quantile"})
_COMMENT = "#"


class Ordering:
    """Orders the families of one page again and again; what is in order stays as it is."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._orders: dict[str, tuple[int, Sequence[int] | None]] = {}
        self._derived = Derived(self._ordered)

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """The families, in order; the same objects where they come again."""
        return self._derived.of(families)

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
        own = {label: value for label, value in labels if label not in _INNER_LABELS}
        keys.append(sort_key(f"{{{labels_text(own)}}}"))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return None if order == list(range(len(keys))) else order
