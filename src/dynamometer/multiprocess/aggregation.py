"""The rules that combine the values of several processes in one value a cell.

The rules are those of prometheus_client 0.26's `MultiProcessCollector`, including which of two
equal values stays and how a NaN counts: a rule is applied to one value of each cell at a time,
in the order of the files, for all cells at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.cells import Cells, Kind, OpenFamily, Rows

_COMPARED: Final = (Kind.MIN, Kind.MAX, Kind.RECENT)


class CellValues(NamedTuple):
    """The values of all cells.

    Attributes:
        values: float64, shape (capacity,).
        recent: intp, the cells of mostrecent gauges.
        absent: bool, for each of these: whether no process has set a value yet.
    """

    values: NDArray[np.float64]
    recent: NDArray[np.intp]
    absent: NDArray[np.bool_]


class _Turn(NamedTuple):
    """Values of different cells: the first of each cell, or the second, and so on.

    Attributes:
        values: intp, the places in all values.
        cells: intp, the cell of each.
    """

    values: NDArray[np.intp]
    cells: NDArray[np.intp]


class Aggregation:
    """The rules, laid out for a fixed set of values and their cells.

    Attributes:
        read: bool, shape (capacity,): whether a cell has a value in any file.
    """

    def __init__(self, cell_of_value: NDArray[np.int32], cells: Cells) -> None:
        """Group the values by rule.

        Args:
            cell_of_value: the cell of each value, shape (n,).
            cells: all cells.
        """
        self._capacity = cells.capacity
        self.read: NDArray[np.bool_] = np.bincount(cell_of_value, minlength=self._capacity) > 0
        kinds = cells.kind[cell_of_value]
        self._sums = np.flatnonzero(kinds == Kind.SUM)
        self._sum_cells = cell_of_value[self._sums].astype(np.intp)
        self._all_sums = self._sums.size == cell_of_value.size
        last = np.flatnonzero(kinds == Kind.LAST)
        self._last = _Turn(last, cell_of_value[last].astype(np.intp))
        self._turns = {
            kind: _divide(np.flatnonzero(kinds == kind), cell_of_value) for kind in _COMPARED
        }
        self._buckets: Sequence[Rows] = ()

    def accumulate_buckets(self, families: Iterable[OpenFamily]) -> None:
        """Accumulate the buckets of histograms from the lowest bound, and compute `_count`."""
        by_size: dict[int, list[Rows]] = {}
        for family in families:
            for size, rows in family.rows().items():
                by_size.setdefault(size, []).append(rows)
        self._buckets = [
            Rows(
                np.concatenate([rows.cells for rows in many]),
                np.concatenate([rows.counts for rows in many]),
            )
            for many in by_size.values()
        ]

    def compute(
        self,
        values: NDArray[np.float64],
        timestamps: NDArray[np.float64],
        base: NDArray[np.float64],
    ) -> CellValues:
        """Compute the values of all cells.

        Args:
            values: shape (n,), the values of the files.
            timestamps: shape (n,), seconds; 0 where a value has none.
            base: shape (capacity,), added to the sums.
        """
        with np.errstate(all="ignore"):  # infinities and NaN are ordinary values
            out = self._add_up(values, base)
            out[self._last.cells] = values[self._last.values]
            self._compare(out, values)
            recent, absent = self._take_most_recent(out, values, timestamps)
        return CellValues(out, recent, absent)

    def _add_up(
        self, values: NDArray[np.float64], base: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        summed = values if self._all_sums else values[self._sums]
        out = base.copy()
        if self._sum_cells.size:
            out += np.bincount(self._sum_cells, summed, self._capacity)
        for buckets in self._buckets:
            sums = np.cumsum(out[buckets.cells], axis=1)
            out[buckets.cells] = sums
            out[buckets.counts] = sums[:, -1]
        return out

    def _compare(self, out: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        for kind, replaces in ((Kind.MIN, np.less), (Kind.MAX, np.greater)):
            for number, (places, cells) in enumerate(self._turns[kind]):
                candidates = values[places]
                if number:
                    current = out[cells]
                    candidates = np.where(replaces(candidates, current), candidates, current)
                out[cells] = candidates

    def _take_most_recent(
        self,
        out: NDArray[np.float64],
        values: NDArray[np.float64],
        timestamps: NDArray[np.float64],
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        turns = self._turns[Kind.RECENT]
        if not turns:
            return np.empty(0, np.intp), np.empty(0, np.bool_)
        latest = np.zeros(out.size)
        for places, cells in turns:
            later = latest[cells] < timestamps[places]
            chosen = cells[later]
            out[chosen] = values[places][later]
            latest[chosen] = timestamps[places][later]
        recent = turns[0].cells
        return recent, latest[recent] == 0


def _divide(places: NDArray[np.intp], cell_of_value: NDArray[np.int32]) -> list[_Turn]:
    """Divide values into turns with at most one value a cell, in the order of the values."""
    cells = cell_of_value[places].astype(np.intp)
    order = np.argsort(cells, kind="stable")
    grouped = cells[order]
    begins = np.flatnonzero(np.diff(grouped, prepend=-1))
    lengths = np.diff(begins, append=grouped.size)
    turn = np.arange(grouped.size) - np.repeat(begins, lengths)
    turns = []
    for number in range(int(turn.max()) + 1 if turn.size else 0):
        chosen = order[turn == number]
        turns.append(_Turn(places[chosen], cells[chosen]))
    return turns
