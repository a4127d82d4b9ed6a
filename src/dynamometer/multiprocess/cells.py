"""The cells of a page, one for each sample line, and the families that own them.

A cell has a number, which indexes the arrays of `Cells`; the number of a removed cell is used
again. A histogram is a set of groups, one for each label set, because its lines are not what the
files contain: buckets are accumulated from the lowest bound, and `_count` is the last sum.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import Metadata
from dynamometer.exposition.ordering import SortKey, sort_key
from dynamometer.exposition.series import Series, series_text
from dynamometer.multiprocess.file_format import Key

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


class Rows(NamedTuple):
    """Histogram groups with the same number of buckets.

    Attributes:
        cells: intp, shape (groups, buckets), in the order of the bounds.
        counts: intp, shape (groups,), the cell of `_count`.
    """

    cells: NDArray[np.intp]
    counts: NDArray[np.intp]


@dataclass(slots=True)
class HistogramGroup:
    """One label set of a histogram.

    Attributes:
        labels: the text of its labels, without `le`.
        original: a key of the group where a page writes its names in another way, else None.
        buckets: the cell of each upper bound.
        others: the cells of `_sum`, and of `_count` where there is one, by sample name.
    """

    labels: str
    original: Key | None = None
    buckets: dict[float, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    def cells(self) -> Iterator[int]:
        """Yield the cells in prometheus_client's order: sum, buckets by bound, count."""
        counts = [name for name in self.others if name.endswith("_count")]
        yield from (cell for name, cell in self.others.items() if name not in counts)
        yield from (self.buckets[bound] for bound in sorted(self.buckets))
        yield from (self.others[name] for name in counts)


@dataclass(slots=True, eq=False)
class OpenFamily:
    """A family under construction.

    Attributes:
        metadata: name, type and help text, as the first file has them.
        mode: of a gauge; empty for other types.
        kind: how its cells' values come about.
        cell_of: the cell of each series; not used by histograms.
        groups: a histogram's label sets, by the text of their labels.
        restructured: whether lines came or went since its bytes were made.
    """

    metadata: Metadata
    mode: str
    kind: Kind
    cell_of: dict[bytes, int] = field(default_factory=dict)
    groups: dict[str, HistogramGroup] = field(default_factory=dict)
    restructured: bool = True
    _rows: dict[int, Rows] | None = None
    _sorted: list[int | HistogramGroup] = field(default_factory=list)
    _unsorted: list[int | HistogramGroup] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.cell_of) + len(self.groups)

    @property
    def count_name(self) -> str:
        """What a histogram's number of observations is called."""
        return f"{self.metadata.name}_count"

    def new_cell(self, cells: Cells, series: bytes) -> int:
        """Add a series, by the left part of its line, and return its cell."""
        cell = self.cell_of[series] = cells.add(series, self, self.kind)
        self._unsorted.append(cell)
        self.restructured = True
        return cell

    def new_group(self, labels: str, original: Key | None) -> HistogramGroup:
        """Add a histogram's group.

        Args:
            labels: the text of its labels, without `le`.
            original: see `HistogramGroup`.
        """
        group = self.groups[labels] = HistogramGroup(labels, original)
        self._unsorted.append(group)
        self.restructured = True
        return group

    def bucket_cell(
        self, cells: Cells, group: HistogramGroup, bound: float, labels: str, *, count: bool
    ) -> int:
        """The cell of a bucket, new or known.

        Args:
            cells: where a new one is made.
            group: the bucket's.
            bound: its upper bound.
            labels: the text of its labels, with `le`.
            count: make a `_count` that is the last bucket's sum.
        """
        cell = group.buckets.get(bound)
        if cell is None:
            series = series_text(f"{self.metadata.name}_bucket", labels)
            cell = group.buckets[bound] = cells.add(f"{series} ".encode(), self, self.kind)
            self.restructured = True
            self._rows = None
            if count:
                derived = self.other_cell(cells, group, self.count_name)
                cells.derived[derived] = True
        return cell

    def other_cell(self, cells: Cells, group: HistogramGroup, sample: str) -> int:
        """The cell of a histogram's `_sum` or `_count`, new or known."""
        cell = group.others.get(sample)
        if cell is None:
            series = series_text(sample, group.labels)
            cell = group.others[sample] = cells.add(f"{series} ".encode(), self, self.kind)
            self.restructured = True
        return cell

    def blocks(self, cells: Cells, size: int) -> list[list[int]]:
        """The cells of all lines in the order of the page, in blocks that change together.

        Args:
            cells: where the cells are.
            size: how many lines a block has where the lines do not say it; a histogram's
                label set is not divided.
        """
        self._sort(cells)
        if self.metadata.type == "histogram":
            return [list(group.cells()) for group in self._sorted if not isinstance(group, int)]
        lines = [cell for cell in self._sorted if isinstance(cell, int)]
        return [lines[begin : begin + size] for begin in range(0, len(lines), size)]

    def rows(self) -> Mapping[int, Rows]:
        """A histogram's groups, by the number of their buckets."""
        if self._rows is None:
            lists: dict[int, list[tuple[list[int], int]]] = {}
            for group in self.groups.values():
                if group.buckets:
                    cells = [group.buckets[bound] for bound in sorted(group.buckets)]
                    lists.setdefault(len(cells), []).append((cells, group.others[self.count_name]))
            self._rows = {
                size: Rows(
                    np.array([cells for cells, _ in rows], np.intp),
                    np.array([count for _, count in rows], np.intp),
                )
                for size, rows in lists.items()
            }
        return self._rows

    def drop(self, cells: Cells, gone: set[int], counts: NDArray[np.int64]) -> None:
        """Remove cells that nothing keeps any more; a histogram's `_count` goes with its buckets.

        Args:
            cells: where they are freed.
            gone: of this family.
            counts: how many raw values each cell has.
        """
        self._sort(cells)
        self.restructured = True
        self._rows = None
        for labels, group in list(self.groups.items()):
            self._drop_from_group(cells, group, gone, counts)
            if not group.buckets and not group.others:
                del self.groups[labels]
        self._sorted = [
            place
            for place in self._sorted
            if (place not in gone if isinstance(place, int) else place.labels in self.groups)
        ]
        for cell in gone:
            series = cells.series[cell]
            if series is not None:
                self.cell_of.pop(series, None)
                cells.remove(cell)

    def _drop_from_group(
        self, cells: Cells, group: HistogramGroup, gone: set[int], counts: NDArray[np.int64]
    ) -> None:
        group.buckets = {bound: cell for bound, cell in group.buckets.items() if cell not in gone}
        count = group.others.get(self.count_name)
        if count is not None and not group.buckets:
            cells.derived[count] = False
            if not counts[count]:
                gone.add(count)
        group.others = {name: cell for name, cell in group.others.items() if cell not in gone}

    def _sort(self, cells: Cells) -> None:
        if not self._unsorted:
            return

        def key(place: int | HistogramGroup) -> SortKey:
            if isinstance(place, HistogramGroup):
                return sort_key(Series(f"{{{place.labels}}}"))
            series = cells.series[place]
            assert series is not None
            return sort_key(Series(series[:-1].decode()))

        if not self._sorted and len(self._unsorted) == 1:
            self._sorted.extend(self._unsorted)
        elif len(self._unsorted) * 8 > len(self._sorted):
            self._sorted.extend(self._unsorted)
            self._sorted.sort(key=key)
        else:
            for place in self._unsorted:
                bisect.insort(self._sorted, place, key=key)
        self._unsorted.clear()
