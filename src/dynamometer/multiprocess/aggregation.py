"""From the values of several processes to the numbers of the page.

The rules are those of prometheus_client 0.26's `MultiProcessCollector`, down to which of two
equal values stays and what a NaN does: each rule is applied to one value a cell at a time,
in the order of the files, to all cells at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.cells import Cells, Kind, OpenFamily, Rows

_COMPARED: Final = (Kind.MIN, Kind.MAX, Kind.RECENT)


class _Round(NamedTuple):
    """Values of different cells: the first of each, or the second, and so on.

    Attributes:
        values: which of all values.
        cells: the cell of each.
    """

    values: NDArray[np.intp]
    cells: NDArray[np.intp]


class Aggregation:
    """The rules laid out for a set of values and their cells."""

    def __init__(self, cell_of_value: NDArray[np.int32], cells: Cells) -> None:
        """Lay them out.

        Args:
            cell_of_value: the cell of each value, shape (n,).
            cells: where the numbers go.
        """
        self._cells = cells
        self.counts: NDArray[np.int64] = np.bincount(cell_of_value, minlength=cells.capacity)
        kinds = cells.kind[cell_of_value]
        self._sums = np.flatnonzero(kinds == Kind.SUM)
        self._sum_cells = cell_of_value[self._sums].astype(np.intp)
        self._all_sums = self._sums.size == cell_of_value.size
        last = np.flatnonzero(kinds == Kind.LAST)
        self._last = _Round(last, cell_of_value[last].astype(np.intp))
        self._rounds = {
            kind: _rounds(np.flatnonzero(kinds == kind), cell_of_value) for kind in _COMPARED
        }
        self._based = bool(cells.based.any())
        self._buckets: Sequence[Rows] = ()

    def accumulate_buckets(self, families: Iterable[OpenFamily]) -> None:
        """Add up the buckets of histograms from the lowest, and make their `_count`."""
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

    def apply(self, values: NDArray[np.float64], timestamps: NDArray[np.float64]) -> None:
        """Compute `values` and `absent` of all cells.

        Args:
            values: shape (n,).
            timestamps: shape (n,), seconds; 0 where there is none.
        """
        with np.errstate(all="ignore"):  # infinities and NaN are values like others
            out = self._add_up(values)
            out[self._last.cells] = values[self._last.values]
            self._compare(out, values)
            self._take_most_recent(out, values, timestamps)
        self._cells.values = out

    def _add_up(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        summed = values if self._all_sums else values[self._sums]
        out: NDArray[np.float64] = np.zeros(self._cells.capacity)
        if self._sum_cells.size:  # of nothing, numpy makes integers
            out = np.bincount(self._sum_cells, summed, self._cells.capacity).astype(
                float, copy=False
            )
        if self._based:
            out += self._cells.base
        for buckets in self._buckets:
            sums = np.cumsum(out[buckets.cells], axis=1)
            out[buckets.cells] = sums
            out[buckets.counts] = sums[:, -1]
        return out

    def _compare(self, out: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        for kind, comes_first in ((Kind.MIN, np.less), (Kind.MAX, np.greater)):
            for number, (indices, cells) in enumerate(self._rounds[kind]):
                new = values[indices]
                if number:
                    new = np.where(comes_first(new, out[cells]), new, out[cells])
                out[cells] = new

    def _take_most_recent(
        self,
        out: NDArray[np.float64],
        values: NDArray[np.float64],
        timestamps: NDArray[np.float64],
    ) -> None:
        if not self._rounds[Kind.RECENT]:
            return
        latest = np.zeros(out.size)
        for indices, cells in self._rounds[Kind.RECENT]:
            later = latest[cells] < timestamps[indices]
            chosen = cells[later]
            out[chosen] = values[indices][later]
            latest[chosen] = timestamps[indices][later]
        everywhere = self._rounds[Kind.RECENT][0].cells
        absent = latest[everywhere] == 0
        appeared = everywhere[self._cells.absent[everywhere] != absent]
        self._cells.absent[everywhere] = absent
        for cell in appeared.tolist():
            family = self._cells.families[cell]
            assert family is not None
            family.restructured = True


def _rounds(indices: NDArray[np.intp], cell_of_value: NDArray[np.int32]) -> list[_Round]:
    """Values in rounds, so that within one no cell comes twice, and the order is kept."""
    cells = cell_of_value[indices].astype(np.intp)
    order = np.argsort(cells, kind="stable")
    grouped = cells[order]
    begins = np.flatnonzero(np.diff(grouped, prepend=-1))
    lengths = np.diff(begins, append=grouped.size)
    turn = np.arange(grouped.size) - np.repeat(begins, lengths)
    rounds = []
    for number in range(int(turn.max()) + 1 if turn.size else 0):
        chosen = order[turn == number]
        rounds.append(_Round(indices[chosen], cells[chosen]))
    return rounds
