"""One number per sample line of the page, in arrays.

A cell is a sample line: its series, the value that the files' values come to, and the place
of that value in the page's bytes. Cells are numbered as they come; the number of a cell that
went is used again.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dynamometer.multiprocess.family import OpenFamily

NOWHERE: Final = -1
# The cell of all values that are read and not shown; no family has it.
HIDDEN: Final = 0
_FIRST_CAPACITY: Final = 256
_Scalar = TypeVar("_Scalar", bound=np.generic)


class Kind(IntEnum):
    """How the values of several processes become a cell's."""

    SUM = 0
    LAST = 1
    MIN = 2
    MAX = 3
    RECENT = 4


class Cells:
    """The arrays; each is indexed with a cell's number.

    Attributes:
        kind: uint8, a `Kind`.
        base: float64, what files that are no longer read have added.
        based: bool, whether the cell stays without a file.
        derived: bool, whether its value is made of other cells (a histogram's `_count`).
        values: float64, the value now.
        shown: int64, the bits of the value that the page's bytes show.
        absent: bool, whether no process has given a value yet (mostrecent gauges).
        chunk: int32, in which chunk of the page the cell's line is, or `NOWHERE`.
        slot: int32, where in the chunk its value is.
        series: the left part of its line, with the space before the value; None where unused.
        families: the family it belongs to.
    """

    def __init__(self) -> None:
        self.series: list[bytes | None] = [None]
        self.families: list[OpenFamily | None] = [None]
        self._free: list[int] = []
        self.kind: NDArray[np.uint8] = np.zeros(_FIRST_CAPACITY, np.uint8)
        self.base: NDArray[np.float64] = np.zeros(_FIRST_CAPACITY)
        self.based: NDArray[np.bool_] = np.zeros(_FIRST_CAPACITY, np.bool_)
        self.derived: NDArray[np.bool_] = np.zeros(_FIRST_CAPACITY, np.bool_)
        self.values: NDArray[np.float64] = np.zeros(_FIRST_CAPACITY)
        self.shown: NDArray[np.int64] = np.zeros(_FIRST_CAPACITY, np.int64)
        self.absent: NDArray[np.bool_] = np.zeros(_FIRST_CAPACITY, np.bool_)
        self.chunk: NDArray[np.int32] = np.full(_FIRST_CAPACITY, NOWHERE, np.int32)
        self.slot: NDArray[np.int32] = np.zeros(_FIRST_CAPACITY, np.int32)

    @property
    def capacity(self) -> int:
        """The arrays' length."""
        return self.kind.size

    def __len__(self) -> int:
        return len(self.series) - len(self._free) - 1

    def add(self, series: bytes, family: OpenFamily, kind: Kind) -> int:
        """A new cell's number."""
        if self._free:
            cell = self._free.pop()
            self.series[cell], self.families[cell] = series, family
        else:
            cell = len(self.series)
            self.series.append(series)
            self.families.append(family)
            if cell == self.capacity:
                self._grow()
        if kind is not Kind.SUM:
            self.kind[cell] = kind
            self.absent[cell] = kind is Kind.RECENT
        return cell

    def remove(self, cell: int) -> None:
        """Free a cell's number; an unused one is as it was at first."""
        self.series[cell] = self.families[cell] = None
        self.kind[cell] = Kind.SUM
        self.base[cell] = self.values[cell] = 0.0
        self.based[cell] = self.derived[cell] = self.absent[cell] = False
        self.chunk[cell] = NOWHERE
        self._free.append(cell)

    def without(self, counts: NDArray[np.int64]) -> list[int]:
        """The cells that nothing keeps: no raw value, no base, no other cell.

        Args:
            counts: how many raw values each cell has; shape (capacity,).
        """
        kept = (counts > 0) | self.based | self.derived
        size = len(self.series)
        return [
            cell for cell in np.flatnonzero(~kept[:size]).tolist() if self.series[cell] is not None
        ]

    def changed(self) -> NDArray[np.intp]:
        """The cells on the page whose value is no longer the one shown."""
        changed = np.flatnonzero(self.values.view(np.int64) != self.shown)
        shown: NDArray[np.intp] = changed[self.chunk[changed] != NOWHERE]
        return shown

    def _grow(self) -> None:
        capacity = self.capacity
        self.kind = _longer(self.kind)
        self.base = _longer(self.base)
        self.based = _longer(self.based)
        self.derived = _longer(self.derived)
        self.values = _longer(self.values)
        self.shown = _longer(self.shown)
        self.absent = _longer(self.absent)
        self.chunk = _longer(self.chunk)
        self.chunk[capacity:] = NOWHERE
        self.slot = _longer(self.slot)


def _longer(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    return np.concatenate([array, np.zeros_like(array)])
