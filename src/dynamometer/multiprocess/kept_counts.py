"""The counts that stay on the page when their files are missing, wrong or removed.

A file may be missing, unreadable or wrong at one reading and valid again at the next. Examples are
a hanging mount, a directory without permission for a moment, and an older copy of the file. The
counts of such a file are held: each of its series shows the larger of the held count and the file's
value, so that a file that returns adds only its increase. A sum is held like a count. The counts
are released when no value of the file is below the held one.

When another process writes a file at the same path, the held counts are added to the totals
permanently. Such a file is recognised when most of its values are at most half of the held ones: at
the first reading of a new file, and at the second reading of the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.cells import Cells
from dynamometer.multiprocess.metrics_file import MetricsFile

# The maximum change of a total by another order of addition, relative to the total.
_ROUNDING: Final = 1e-9
_MAX_MISSING_FILES: Final = 10_000  # with held counts, some kilobytes each
_Scalar = TypeVar("_Scalar", bound=np.generic)


class _Counts(NamedTuple):
    """Counts by cell.

    Attributes:
        cells: int32, sorted, each cell once.
        values: float64, the count of each.
    """

    cells: NDArray[np.int32]
    values: NDArray[np.float64]

    @classmethod
    def of_values(cls, cells: NDArray[np.int32], values: NDArray[np.float64]) -> _Counts:
        """Return the counts of a file's values; several of them may have the same cell.

        Args:
            cells: the cell of each value.
            values: float64, same shape.
        """
        distinct, places = np.unique(cells, return_inverse=True)
        sums = np.zeros(distinct.size)
        _add_at(sums, places, values)
        return cls(distinct, sums)

    def raised_to(self, other: _Counts) -> _Counts:
        """Return these counts and other ones; for a cell in both, the larger count."""
        merged, places = np.unique(np.concatenate([self.cells, other.cells]), return_inverse=True)
        larger = np.full(merged.size, -np.inf)
        np.maximum.at(larger, places, np.concatenate([self.values, other.values]))
        return _Counts(merged, larger)

    def without(self, cells: NDArray[np.int32]) -> _Counts:
        """Return the counts of all other cells."""
        other = ~np.isin(self.cells, cells)
        return _Counts(self.cells[other], self.values[other])

    def find(self, cells: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return which of some cells have a count, and their counts."""
        if not self.cells.size:
            return np.empty(0, np.intp), np.empty(0)
        places = np.searchsorted(self.cells, cells).clip(max=self.cells.size - 1)
        found = np.flatnonzero(self.cells[places] == cells)
        return found, self.values[places[found]]


_NONE: Final = _Counts(np.empty(0, np.int32), np.empty(0))


@dataclass(slots=True)
class _Record:
    """The counts of the file at one path.

    Attributes:
        held: the counts of an earlier state of the file.
        last: the values at the last complete reading of the present state; None before it.
        cells: the cells of the values in `last`.
        seen: whether any complete reading included the present file.
        replacement_suspected: whether the last reading returned values of another process.
    """

    held: _Counts = _NONE
    last: NDArray[np.float64] | None = None
    cells: NDArray[np.int32] = field(default_factory=lambda: _NONE.cells)
    seen: bool = False
    replacement_suspected: bool = False

    def hold(self) -> None:
        """Hold the values of the last complete reading."""
        if self.last is not None:
            self.held = self.held.raised_to(_Counts.of_values(self.cells, self.last))
            self.last = None


class KeptCounts:
    """The records of all kept files, and the counts that are in the totals permanently.

    Attributes:
        base: float64, shape (capacity of the cells,), added to each cell's values: the counts of
            replaced and removed files, and held counts of series that are not read.
        has_counts: bool, same shape: whether a cell has a count in `base`, or a held count.
        changed: whether counts were held, added or released, or `plan` was called, since
            `begin_reading`.
    """

    def __init__(self, cells: Cells) -> None:
        """Keep nothing yet.

        Args:
            cells: the cells of all values.
        """
        self._cells = cells
        self._records: dict[str, _Record] = {}
        self._added: NDArray[np.float64] = np.zeros(cells.capacity)
        self._has_added: NDArray[np.bool_] = np.zeros(cells.capacity, np.bool_)
        self.base = self._added
        self.has_counts = self._has_added
        self._had_counts = self._has_added  # the cells in `has_counts` at any time in a reading
        self.changed = False
        # The places of values with held counts. The values of one cell of a file are a group: for
        # each of these places its group, and for each group its first place and its held count.
        self._raised: NDArray[np.intp] = np.empty(0, np.intp)
        self._groups: NDArray[np.intp] = np.empty(0, np.intp)
        self._firsts: NDArray[np.intp] = np.empty(0, np.intp)
        self._held_values: NDArray[np.float64] = np.empty(0)

    @property
    def empty(self) -> bool:
        """True while no file is kept."""
        return not self._records

    def begin_reading(self) -> None:
        """Reset `changed`."""
        self.changed = False
        self._had_counts = self.has_counts

    def keep(self, file: MetricsFile) -> None:
        """Keep the counts of a file from now on."""
        self._records.setdefault(file.path, _Record())

    def keeps(self, file: MetricsFile) -> bool:
        """Return whether the counts of a file are kept."""
        return file.path in self._records

    def record(self, file: MetricsFile, values: NDArray[np.float64]) -> None:
        """Record the values of a complete reading, unless all of them fell to zero."""
        record = self._records[file.path]
        if not fell_to_zeros(record.last, values):
            record.last, record.cells = values.copy(), file.cells
        record.seen = True

    def last_values(self, file: MetricsFile) -> NDArray[np.float64] | None:
        """Return the recorded values of a kept file; None before the first complete reading."""
        return self._records[file.path].last

    def hold(self, file: MetricsFile, *, ended: bool = False) -> None:
        """Hold the counts of a kept file whose content is forgotten.

        Args:
            file: the file.
            ended: whether the directory has no file, or another one, at its path.
        """
        record = self._records.pop(file.path, None)
        if record is None:
            return
        if record.last is not None or record.held.cells.size:
            self.changed = True
        record.hold()
        record.replacement_suspected = False
        if ended:
            record.seen = False
        if record.held.cells.size or not ended:
            self._records[file.path] = record  # at the end: `plan` drops the first records

    def add(self, file: MetricsFile) -> None:
        """Add the counts of a file that `retire` removed to the totals."""
        record = self._records.pop(file.path, None)
        if record is not None:
            record.hold()
            self._add(record.held)

    def suspected_replacements(self, files: Sequence[MetricsFile]) -> set[MetricsFile]:
        """Return the files whose last reading returned values of another process."""
        return {
            file
            for file in files
            if self.keeps(file) and self._records[file.path].replacement_suspected
        }

    def judge(self, file: MetricsFile, now: NDArray[np.float64]) -> bool:
        """Decide whether the counts of a kept file are held, released, or added to the totals.

        Args:
            file: the file.
            now: float64, its values as just read.

        Returns:
            Whether `plan` is needed.
        """
        record = self._records[file.path]
        suspected, record.replacement_suspected = record.replacement_suspected, False
        changed = False
        last = record.last
        if last is not None and self._any_fell(file, last, now[: last.size]):
            record.held = record.held.raised_to(_Counts.of_values(record.cells, last))
            self.changed = changed = True
        if not record.held.cells.size:
            return changed
        counts = _Counts.of_values(file.cells, now)
        places, held = record.held.find(counts.cells)
        present = counts.values[places]
        if not places.size:
            return changed
        if not (present < held).any():
            record.held = record.held.without(file.cells)
        elif not _of_another_process(present, held):
            return changed
        elif record.seen and not suspected:
            record.replacement_suspected = True  # this reading may be wrong: the next one decides
            return changed
        else:
            self._add(record.held)
            record.held = _NONE
        self.changed = True
        return True

    def plan(self, files: Sequence[MetricsFile]) -> None:
        """Compute `base` and `has_counts`, and the places of values with held counts.

        If too many files are missing, the counts of the first ones are added permanently.

        Args:
            files: the files that are read, in the order of their values.
        """
        held = {path: one.held for path, one in self._records.items() if one.held.cells.size}
        read = {file.path for file in files}
        for path in [path for path in held if path not in read][:-_MAX_MISSING_FILES]:
            self._add(held.pop(path))
            del self._records[path]
        self._added = _longer(self._added, self._cells.capacity)
        self._has_added = _longer(self._has_added, self._cells.capacity)
        none = np.empty(0, np.intp)
        places, groups, firsts, values = [none], [none], [none], [np.empty(0)]
        self.has_counts = self._has_added.copy()
        begin = group_count = 0
        for file in files if held else ():
            if file.path in held:
                counts = held[file.path]
                found, larger = counts.find(file.cells)
                _, first, group = np.unique(
                    file.cells[found], return_index=True, return_inverse=True
                )
                places.append(begin + found)
                groups.append(group_count + group)
                firsts.append(begin + found[first])
                values.append(larger[first])
                group_count += first.size
                self.has_counts[counts.cells] = True
                held[file.path] = counts.without(file.cells)
            begin += file.cells.size
        self._raised, self._groups = np.concatenate(places), np.concatenate(groups)
        self._firsts, self._held_values = np.concatenate(firsts), np.concatenate(values)
        self.base = self._added.copy()
        if held:
            cells = np.concatenate([counts.cells for counts in held.values()])
            _add_at(self.base, cells, np.concatenate([counts.values for counts in held.values()]))
            self.has_counts[cells] = True
        self._had_counts = _longer(self._had_counts, self._cells.capacity) | self.has_counts
        self.changed = True

    def raise_to_held(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return all values, those of a cell of a file in total at least the held count.

        Args:
            values: float64, the values of the files in the order of `plan`.
        """
        if not self._raised.size:
            return values
        held = self._held_values
        sums = np.bincount(self._groups, values[self._raised], held.size)
        short = (sums < held) | np.isnan(held)
        raised = values.copy()
        raised[self._raised[short[self._groups]]] = 0.0
        raised[self._firsts[short]] = held[short]
        return raised

    def correct(self, before: NDArray[np.float64], now: NDArray[np.float64]) -> bool:
        """Raise the base of totals that fell only because they were added up in another order.

        Prometheus interprets any decrease of a counter as a reset, even of its last bit.

        Args:
            before: the cells' values before counts were held or added.
            now: the cells' present values; cells may have been added at the end.

        Returns:
            Whether the values have to be computed again.
        """
        known = before.size
        with np.errstate(invalid="ignore"):  # two infinities
            missing = before - now[:known]
        rounded = (missing > 0) & (missing < _ROUNDING * np.abs(before))
        short = np.flatnonzero(self._had_counts[:known] & rounded)
        missing = missing[short]
        smallest = np.nextafter(self.base[short], np.inf) - self.base[short]
        self.base[short] += np.maximum(missing, smallest)
        self._added[short] += np.maximum(missing, smallest)
        self._has_added[short] = self.has_counts[short] = True
        return bool(short.size)

    def _add(self, counts: _Counts) -> None:
        """Add counts to the totals permanently."""
        self.changed = True
        self._added = _longer(self._added, self._cells.capacity)
        self._has_added = _longer(self._has_added, self._cells.capacity)
        _add_at(self._added, counts.cells, counts.values)
        self._has_added[counts.cells] = True

    def _any_fell(
        self, file: MetricsFile, before: NDArray[np.float64], now: NDArray[np.float64]
    ) -> bool:
        """Return whether any value fell, except sums: a negative amount lowers a sum.

        Args:
            file: the file.
            before: the former values of its first cells.
            now: their present values.
        """
        for place in np.flatnonzero(now < before).tolist():
            series = self._cells.series[file.cells[place]]
            assert series is not None
            is_sum = series.partition(b"{")[0].rstrip().endswith(b"_sum")
            if file.name.type == "counter" or not is_sum or np.isinf(before[place]):
                return True
        return False


def fell_to_zeros(before: NDArray[np.float64] | None, now: NDArray[np.float64]) -> bool:
    """Return whether all values are zero and a former one was not: such a reading may be wrong."""
    return before is not None and bool(before.any()) and not now.any()


def _of_another_process(now: NDArray[np.float64], held: NDArray[np.float64]) -> bool:
    """Return whether most values are at most half of the held ones, and any is not zero."""
    counted = held > 0
    values = now[counted]
    fallen = int(np.count_nonzero(values <= held[counted] / 2))
    return bool(values.any()) and 2 * fallen > values.size


def _add_at(
    sums: NDArray[np.float64],
    cells: NDArray[np.int32] | NDArray[np.intp],
    values: NDArray[np.float64],
) -> None:
    with np.errstate(invalid="ignore"):  # infinities of two signs
        np.add.at(sums, cells, values)


def _longer(array: NDArray[_Scalar], size: int) -> NDArray[_Scalar]:
    """Return an array of at least some size, filled with zeros."""
    if array.size >= size:
        return array
    return np.concatenate([array, np.zeros(size - array.size, array.dtype)])
