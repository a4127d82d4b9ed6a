"""The cells of a page, one for each sample line, and the families that own them.

A cell has a number, which is its index in arrays; the number of a removed cell is used again.

A histogram is a set of groups, one for each label set, because its lines differ from the entries of
the files: buckets are accumulated from the lowest bound, and `_count` is the last of these sums.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import Metadata
from dynamometer.exposition.ordering import SortKey, sort_key
from dynamometer.exposition.series import Series, series_text
from dynamometer.multiprocess.file_format import Key

# The number of a missing cell, or of a missing chunk.
NOWHERE: Final = -1
# The cell of all values that are read but not shown; it belongs to no family.
HIDDEN: Final = 0
_FIRST_CAPACITY: Final = 256
# Sort all lines again if more than an eighth of them is new, else insert each new line.
_SORTED_PER_INSERTED: Final = 8


class Kind(IntEnum):
    """The rule that combines the values of several processes in a cell."""

    SUM = 0
    LAST = 1
    MIN = 2
    MAX = 3
    RECENT = 4


class Cells:
    """All cells: their numbers, series and families.

    Attributes:
        kind: uint8, shape (capacity,): the `Kind` of each cell.
        derived: bool, shape (capacity,): whether the cell's value is computed from other cells
            (a histogram's `_count`).
        series: the left part of each cell's line, with the space before the value; None where
            the number is not used.
        families: the family of each cell.
    """

    def __init__(self) -> None:
        self.series: list[bytes | None] = [None]  # the first is HIDDEN
        self.families: list[MutableFamily | None] = [None]
        self._free: list[int] = []
        self.kind: NDArray[np.uint8] = np.zeros(_FIRST_CAPACITY, np.uint8)
        self.derived: NDArray[np.bool_] = np.zeros(_FIRST_CAPACITY, np.bool_)

    @property
    def capacity(self) -> int:
        """The length of arrays that have an element for each cell."""
        return self.kind.size

    def __len__(self) -> int:
        return len(self.series) - len(self._free) - 1

    def add(self, series: bytes, family: MutableFamily, kind: Kind) -> int:
        """Add a cell and return its number."""
        if self._free:
            cell = self._free.pop()
            self.series[cell], self.families[cell] = series, family
        else:
            cell = len(self.series)
            self.series.append(series)
            self.families.append(family)
            if cell == self.capacity:
                self.kind = np.concatenate([self.kind, np.zeros_like(self.kind)])
                self.derived = np.concatenate([self.derived, np.zeros_like(self.derived)])
        self.kind[cell] = kind
        return cell

    def remove(self, cell: int) -> None:
        """Remove a cell; its number may be used again."""
        self.series[cell] = self.families[cell] = None
        self.kind[cell] = Kind.SUM
        self.derived[cell] = False
        self._free.append(cell)

    def find_unused(self, used: NDArray[np.bool_]) -> list[int]:
        """Return the cells that are neither used nor derived.

        Args:
            used: bool, shape (capacity,).
        """
        size = len(self.series)
        unused = np.flatnonzero(~(used | self.derived)[:size])
        return [cell for cell in unused.tolist() if self.series[cell] is not None]


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
        labels: the text of the labels, without `le`.
        original: a key of the group where a page spells its names differently, else None.
        buckets: the cell of each upper bound.
        others: the cells of `_sum` and, where it exists, `_count`, by sample name.
    """

    labels: str
    original: Key | None = None
    buckets: dict[float, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    def cells(self) -> Iterator[int]:
        """Return the cells in prometheus_client's order: sum, buckets by bound, count."""
        counts = [name for name in self.others if name.endswith("_count")]
        yield from (cell for name, cell in self.others.items() if name not in counts)
        yield from (self.buckets[bound] for bound in sorted(self.buckets))
        yield from (self.others[name] for name in counts)


@dataclass(slots=True, eq=False)
class MutableFamily:
    """A family whose series are added when files have new keys, and removed with the files.

    Attributes:
        metadata: name, type and help text of the first file.
        mode: the mode of a gauge; empty for other types.
        kind: the rule that combines its values.
        cell_of: the cell of each series; empty for histograms.
        groups: a histogram's label sets, by the text of their labels.
        restructured: whether lines were added or removed since its bytes were built.
    """

    metadata: Metadata
    mode: str
    kind: Kind
    cell_of: dict[bytes, int] = field(default_factory=dict)
    groups: dict[str, HistogramGroup] = field(default_factory=dict)
    restructured: bool = True
    _rows: dict[int, Rows] | None = None
    # The lines in the order of the page, and the lines to be added: cells or groups.
    _sorted: list[int | HistogramGroup] = field(default_factory=list)
    _unsorted: list[int | HistogramGroup] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.cell_of) + len(self.groups)

    @property
    def count_name(self) -> str:
        """The sample name of a histogram's number of observations."""
        return f"{self.metadata.name}_count"

    def add_cell(self, cells: Cells, series: bytes) -> int:
        """Add a series by the left part of its line, and return its cell."""
        cell = self.cell_of[series] = cells.add(series, self, self.kind)
        self._unsorted.append(cell)
        self.restructured = True
        return cell

    def add_group(self, labels: str, original: Key | None) -> HistogramGroup:
        """Add a label set of a histogram.

        Args:
            labels: the text of the labels, without `le`.
            original: see `HistogramGroup`.
        """
        group = self.groups[labels] = HistogramGroup(labels, original)
        self._unsorted.append(group)
        self.restructured = True
        return group

    def find_bucket(
        self, cells: Cells, group: HistogramGroup, bound: float, labels: str, *, count: bool
    ) -> int:
        """Return the cell of a bucket; add the cell where it is new.

        Args:
            cells: all cells.
            group: the bucket's label set.
            bound: the bucket's upper bound.
            labels: the text of its labels, with `le`.
            count: whether the label set has a `_count`, the sum of its buckets.
        """
        cell = group.buckets.get(bound)
        if cell is None:
            series = series_text(f"{self.metadata.name}_bucket", labels)
            cell = group.buckets[bound] = cells.add(f"{series} ".encode(), self, self.kind)
            self.restructured = True
            self._rows = None
            if count:
                derived = self.find_other(cells, group, self.count_name)
                cells.derived[derived] = True
        return cell

    def find_other(self, cells: Cells, group: HistogramGroup, sample: str) -> int:
        """Return the cell of a histogram's `_sum` or `_count`; add the cell where it is new."""
        cell = group.others.get(sample)
        if cell is None:
            series = series_text(sample, group.labels)
            cell = group.others[sample] = cells.add(f"{series} ".encode(), self, self.kind)
            self.restructured = True
        return cell

    def divide(self, cells: Cells, size: int) -> list[list[int]]:
        """Return the cells of all lines in the order of the page, in blocks.

        Args:
            cells: all cells.
            size: the number of lines in a block; a histogram has a block for each label set.
        """
        self._sort(cells)
        if self.metadata.type == "histogram":
            return [list(group.cells()) for group in self._sorted if not isinstance(group, int)]
        lines = [cell for cell in self._sorted if isinstance(cell, int)]
        return [lines[begin : begin + size] for begin in range(0, len(lines), size)]

    def rows(self) -> Mapping[int, Rows]:
        """Return a histogram's groups by their number of buckets."""
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

    def drop(self, cells: Cells, unused: set[int], used: NDArray[np.bool_]) -> None:
        """Remove unused cells, and a derived `_count` that has no buckets left.

        Args:
            cells: all cells.
            unused: the unused cells of this family.
            used: bool, shape (capacity,): whether a cell has values or counts.
        """
        self._sort(cells)
        self.restructured = True
        self._rows = None
        for labels, group in list(self.groups.items()):
            self._drop_from_group(cells, group, unused, used)
            if not group.buckets and not group.others:
                del self.groups[labels]
        self._sorted = [
            line
            for line in self._sorted
            if (line not in unused if isinstance(line, int) else line.labels in self.groups)
        ]
        for cell in unused:
            series = cells.series[cell]
            if series is not None:
                self.cell_of.pop(series, None)
                cells.remove(cell)

    def _drop_from_group(
        self, cells: Cells, group: HistogramGroup, unused: set[int], used: NDArray[np.bool_]
    ) -> None:
        group.buckets = {bound: cell for bound, cell in group.buckets.items() if cell not in unused}
        count = group.others.get(self.count_name)
        if count is not None and not group.buckets:
            cells.derived[count] = False
            if not used[count]:
                unused.add(count)
        group.others = {name: cell for name, cell in group.others.items() if cell not in unused}

    def _sort(self, cells: Cells) -> None:
        if not self._unsorted:
            return

        def key(line: int | HistogramGroup) -> SortKey:
            if isinstance(line, HistogramGroup):
                return sort_key(Series(f"{{{line.labels}}}"))
            series = cells.series[line]
            assert series is not None
            return sort_key(Series(series[:-1].decode()))

        if not self._sorted and len(self._unsorted) == 1:
            self._sorted.extend(self._unsorted)
        elif len(self._unsorted) * _SORTED_PER_INSERTED > len(self._sorted):
            self._sorted.extend(self._unsorted)
            self._sorted.sort(key=key)
        else:
            for line in self._unsorted:
                bisect.insort(self._sorted, line, key=key)
        self._unsorted.clear()
