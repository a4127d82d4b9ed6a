"""What files that are not read now have added to the totals.

A file may be missing, unreadable or odd for one reading, and back at the next: a hung mount, a
directory without permission for a moment, a copy that replaces the original. What a file had
counted is remembered by its path when the file goes, and a file that comes back adds only what
it has above that. Another process that begins in a file of the same path is known by its values:
most of them are at most half of what they were, in two readings where the file is the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.cells import Cells
from dynamometer.multiprocess.metrics_file import MultiprocessFile

_LAST_BITS: Final = 4
_MOST_REMEMBERED: Final = 1 << 22  # values, of 12 bytes: some 50 MB
_VALUES_PER_FILE: Final = 64  # what the memory of a file takes besides its values


class _Remembered(NamedTuple):
    """The values of a file that are in the totals and not zero, and their cells."""

    cells: NDArray[np.int32]
    values: NDArray[np.float64]

    @property
    def size(self) -> int:
        return self.cells.size + _VALUES_PER_FILE


class KeptCounts:
    """What files had counted that are gone, by path; the longest gone is forgotten first."""

    def __init__(self, cells: Cells) -> None:
        """Remember nothing yet.

        Args:
            cells: where totals are kept.
        """
        self._cells = cells
        self._remembered: dict[str, _Remembered] = {}
        self._size = 0

    def set_aside(self, file: MultiprocessFile, *, removed: bool = False) -> bool:
        """Fold what a file had counted before it was forgotten into the totals.

        Args:
            file: the file.
            removed: the file was removed for good, and another of its path is not the same.

        Returns:
            Whether the totals have more.
        """
        past = file.take_past()
        if past is None:
            return False
        values = past.counted
        baseline = None if past.baseline is None else past.baseline[: values.size]
        if past.held and baseline is not None:
            values = np.maximum(values, baseline)
        cells = past.cells[: values.size]
        fold(values, cells, baseline, self._cells)
        counted = self._take(file.path)
        if not removed:
            counted |= past.known
            counted |= zip(cells.tolist(), values.tolist(), strict=True)
            self._remember(file.path, counted)
        return True

    def _remember(self, path: str, counted: dict[int, float]) -> None:
        counted = {cell: value for cell, value in counted.items() if value}
        one = self._remembered[path] = _Remembered(
            np.array(list(counted), np.int32), np.array(list(counted.values()), np.float64)
        )
        self._size += one.size
        while self._size > _MOST_REMEMBERED and len(self._remembered) > 1:
            self._take(next(iter(self._remembered)))

    def _take(self, path: str) -> dict[int, float]:
        one = self._remembered.pop(path, None)
        if one is None:
            return {}
        self._size -= one.size
        return dict(zip(one.cells.tolist(), one.values.tolist(), strict=True))

    def resume(self, file: MultiprocessFile) -> None:
        """Let a file that was just parsed count from where a file of its path was."""
        if file.path in self._remembered:
            file.resume(self._take(file.path))

    def judge(self, file: MultiprocessFile, now: NDArray[np.float64], *, suspected: bool) -> bool:
        """Decide how a file goes on whose values fell, or that has come back.

        Args:
            file: the file.
            now: float64, its values as just read.
            suspected: whether the reading before had values of another process.

        Returns:
            Whether its values count from another place than before.
        """
        changed = False
        if not file.held:
            before = file.counted
            if before is None or not self._fallen(file, now[: before.size], before):
                return False
            file.stash()
            changed = self.set_aside(file)
            self.resume(file)
        known = file.baseline
        assert known is not None
        if not self._fallen(file, now, known):
            file.held = file.suspected = False
            return True
        if not _another_process(now, known):
            file.suspected = False
        elif file.seen and not suspected:
            file.suspected = True  # one odd reading: the next one decides
        else:
            file.begin_again()
            return True
        return changed

    def _fallen(
        self, file: MultiprocessFile, now: NDArray[np.float64], before: NDArray[np.float64]
    ) -> bool:
        """Whether any value fell but for sums, to which negative amounts may be added."""
        series = self._cells.series
        for place in np.flatnonzero(now < before).tolist():
            line = series[file.cells[place]]
            assert line is not None
            is_sum = line.partition(b"{")[0].rstrip().endswith(b"_sum")
            if file.name.type == "counter" or not is_sum or np.isinf(before[place]):
                return True
        return False


def _another_process(now: NDArray[np.float64], known: NDArray[np.float64]) -> bool:
    """Whether values are those of a process that has begun since; not while they are all zero."""
    counted = known > 0
    values = now[counted]
    fallen = int(np.count_nonzero(values <= known[counted] / 2))
    return bool(values.any()) and 2 * fallen > values.size


def since(values: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what has been counted since a baseline.

    An infinity that was there already adds nothing: subtracted from itself it would be NaN.

    Args:
        values: shape (n,).
        baseline: shape (n,).
    """
    with np.errstate(invalid="ignore"):
        counted: NDArray[np.float64] = values - baseline
    endless = np.flatnonzero(~np.isfinite(baseline))
    now = values[endless]
    counted[endless] = np.where(now == baseline[endless], 0.0, now)
    return counted


def fold(
    values: NDArray[np.float64],
    places: NDArray[np.int32],
    baseline: NDArray[np.float64] | None,
    cells: Cells,
) -> None:
    """Add a file's values to the base of their cells.

    Args:
        values: as last read; none of a gauge, which has no past.
        places: the cell of each.
        baseline: what each counts from; None for zero.
        cells: where the base is.
    """
    if not values.size:
        return
    added = values if baseline is None else since(values, baseline)
    with np.errstate(invalid="ignore"):  # infinities of two signs
        np.add.at(cells.base, places, added)
    cells.based[places] = True


def keep(before: NDArray[np.float64], cells: Cells, apply: Callable[[], None]) -> None:
    """Added up in another order, a total must not lose its last bit.

    For Prometheus that would be a counter's reset.

    Args:
        before: the cells' values before files were folded; others may have come since.
        cells: the cells.
        apply: computes their values.
    """
    apply()
    known = before.size
    short = np.flatnonzero(cells.based[:known] & (cells.values[:known] < before))
    for _ in range(_LAST_BITS):
        if not short.size:
            return
        missing = before[short] - cells.values[short]
        smallest = np.nextafter(cells.base[short], np.inf) - cells.base[short]
        cells.base[short] += np.maximum(missing, smallest)
        apply()
        short = short[cells.values[short] < before[short]]
