"""The rules that combine the values of several processes in one value per cell.

The rules are those of prometheus_client 0.26's `MultiProcessCollector`, including the choice
between two equal values and the treatment of NaN. Therefore a rule takes the values of a cell one
after the other, in the order of the files. Each step does so for all cells at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.cells import Cells, Kind, MutableFamily, Rows

_COMPARED: Final = (Kind.MIN, Kind.MAX, Kind.RECENT)


class CellValues(NamedTuple):
    """The values of all cells.

    Attributes:
        values: float64, shape (capacity,).
        recent: intp, the cells of mostrecent gauges.
        absent: bool, for each cell in `recent`: whether no process has set a value yet.
    """

    values: NDArray[np.float64]
    recent: NDArray[np.intp]
    absent: NDArray[np.bool_]


class _Step(NamedTuple):
    """At most one value of each cell: the first value of each in the first step, and so on.

    Attributes:
        places: intp, the places of the values in the array of all values.
        cells: intp, the cell of each value.
    """

    places: NDArray[np.intp]
    cells: NDArray[np.intp]


class Aggregation:
    """The rules, prepared for a fixed set of values and their cells.

    Attributes:
        has_values: bool, shape (capacity,): whether a cell has a value in any file.
    """

    def __init__(self, cell_of_value: NDArray[np.int32], cells: Cells) -> None:
        """Group the values by rule.

        Args:
            cell_of_value: the cell of each value, shape (n,).
            cells: all cells.
        """
        self._capacity = cells.capacity
        counts = np.bincount(cell_of_value, minlength=self._capacity)
        self.has_values: NDArray[np.bool_] = counts > 0
        kinds = cells.kind[cell_of_value]
        self._sums = np.flatnonzero(kinds == Kind.SUM)
        self._sum_cells = cell_of_value[self._sums].astype(np.intp)
        self._all_sums = self._sums.size == cell_of_value.size
        last = np.flatnonzero(kinds == Kind.LAST)
        self._last = _Step(last, cell_of_value[last].astype(np.intp))
        self._steps = {
            kind: _divide_into_steps(np.flatnonzero(kinds == kind), cell_of_value)
            for kind in _COMPARED
        }
        self._buckets: Sequence[Rows] = ()

    def accumulate_buckets(self, families: Iterable[MutableFamily]) -> None:
        """Let `compute` accumulate buckets from the lowest bound, and derive `_count` from them."""
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
            out[self._last.cells] = values[self._last.places]
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
            for number, (places, cells) in enumerate(self._steps[kind]):
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
        steps = self._steps[Kind.RECENT]
        if not steps:
            return np.empty(0, np.intp), np.empty(0, np.bool_)
        latest = np.zeros(out.size)
        for places, cells in steps:
            later = latest[cells] < timestamps[places]
            chosen = cells[later]
            out[chosen] = values[places][later]
            latest[chosen] = timestamps[places][later]
        recent = steps[0].cells
        return recent, latest[recent] == 0


def _divide_into_steps(places: NDArray[np.intp], cell_of_value: NDArray[np.int32]) -> list[_Step]:
    """Divide values into steps with at most one value of each cell, in the order of the values."""
    cells = cell_of_value[places].astype(np.intp)
    order = np.argsort(cells, kind="stable")
    grouped = cells[order]
    begins = np.flatnonzero(np.diff(grouped, prepend=-1))
    lengths = np.diff(begins, append=grouped.size)
    step = np.arange(grouped.size) - np.repeat(begins, lengths)
    steps = []
    for number in range(int(step.max()) + 1 if step.size else 0):
        chosen = order[step == number]
        steps.append(_Step(places[chosen], cells[chosen]))
    return steps
