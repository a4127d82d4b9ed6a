"""Keeps a page current with a set of multiprocess files.

One reading is a row of small steps: look which files there are, parse the keys that are new,
gather all values, compute the cells, format what changed. When nothing is new, it is one
look at each directory, one system call a file, and a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import Family
from dynamometer.multiprocess.aggregate import Aggregation
from dynamometer.multiprocess.cells import Cells
from dynamometer.multiprocess.faults import FaultLog, FileFault, Reason
from dynamometer.multiprocess.file import CLOSED, MultiprocessFile
from dynamometer.multiprocess.files import OpenFiles, unlink
from dynamometer.multiprocess.page import LINES_PER_UPDATE, Page
from dynamometer.multiprocess.reading import Reading, UnreadableError
from dynamometer.multiprocess.retired import RetiredFile, RetiredFiles
from dynamometer.multiprocess.series import LeftOutError, SeriesTable
from dynamometer.multiprocess.tree import FileSource

KEYS_PER_STEP: Final = 64
# A file that grows while it is read is followed this often; the rest comes the next time.
_ROUNDS: Final = 3
_LAST_BITS: Final = 4


class Reader:
    """The files of a tree, read again and again.

    Attributes:
        families: the page's families by name, as of the last reading: the same objects as
            before where nothing in them changed, and the same tuple where nothing did.
    """

    def __init__(
        self,
        tree: FileSource,
        labels: Mapping[str, str],
        *,
        max_series: int,
        accumulate: bool = True,
        keep_totals: bool = False,
    ) -> None:
        """Nothing is read yet.

        Args:
            tree: where the files are.
            labels: constant ones, added to every series that has not its own.
            max_series: how many series there may be.
            keep_totals: what files that are gone had counted stays in the totals.
            accumulate: add up a histogram's buckets, and make its `_count` of them.
        """
        self.families: tuple[Family, ...] = ()
        self._tree = tree
        self._accumulate = accumulate
        self._keep_totals = keep_totals
        self._faults = FaultLog()
        self._not_removed: list[tuple[str, Reason, str]] = []
        self._files = OpenFiles()
        self._retired = RetiredFiles()
        self._awakened: dict[str, RetiredFile] = {}
        self._cells = Cells()
        self._table = SeriesTable(self._cells, labels, max_series=max_series, accumulate=accumulate)
        self._page = Page(self._cells)
        self._again: list[MultiprocessFile] = []
        self._replan = False
        self._changed = True
        self._before = np.empty(0)  # the cells' values before files ended in this reading
        self._reading = Reading([], self._cells)
        self._aggregation = Aggregation(self._reading.cells, self._cells)

    @property
    def errors(self) -> Mapping[str, int]:
        """How often a file, or series of one, was left out, by reason; only grows."""
        return self._faults.counts

    @property
    def processes(self) -> Mapping[str, Sequence[str]]:
        """The paths of the files that each process has, as of the last reading."""
        return {
            process: [file.path for file in files]
            for process, files in self._files.processes.items()
        }

    def steps(self) -> Iterator[None]:
        """One reading; it is complete when the iterator ends, and in between nothing shows."""
        self._before = np.empty(0)
        unread = self._follow_files()
        yield
        for _ in range(_ROUNDS):
            for file in unread:
                yield from self._parse(file)
            if unread:
                self._replan = True
            unread = self._gather()
            if not unread:
                break
        self._table.forget_keys()
        if self._before.size:
            self._mend_totals(self._before)
        yield
        yield from self._show()
        self._faults.note(self._all_faults())

    def retire(self, processes: frozenset[str], *, owned: bool) -> None:
        """Count what ended processes have counted for good, and read their files no more.

        A reading must have just been made.

        Args:
            processes: their identifiers, as the files' names have them.
            owned: remove their files.
        """
        before = self._cells.values.copy()
        for file in self._files.of_processes(processes):
            counted = self._counted(file)
            self._fold(file.cells, counted, file.baseline)
            self._files.give_up(file)
            if not (owned and self._removed(file)):
                self._retired.add(file, counted)
        self._replan = True
        self._gather()
        self._mend_totals(before)
        for _ in self._show():
            pass

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def _follow_files(self) -> list[MultiprocessFile]:
        """Look which files there are; those of which something is to be parsed."""
        new: list[MultiprocessFile] = []
        if self._tree.refresh():
            listing = self._tree.files
            if self._retired:
                self._retired.keep(listing)
                listing = {
                    path: inode for path, inode in listing.items() if path not in self._retired
                }
            for file in self._files.ended(listing):
                self._end(file)
            new = self._files.follow(listing)
        good = self._files.good
        again, self._again = [file for file in self._again if file.path in good], []
        for file in again:
            file.forget()
        unread = again + [file for file in good.values() if file.waiting]
        unread += self._files.bad_files()
        for retired in self._retired.pop_awakened({file.name.process for file in new}):
            self._awakened[retired.file.path] = retired
            unread.append(retired.file)
        return unread + new

    def _parse(self, file: MultiprocessFile) -> Iterator[None]:
        values: list[int] = []
        cells: list[int] = []
        try:
            for number, entry in enumerate(file.new_entries()):
                if number % KEYS_PER_STEP == KEYS_PER_STEP - 1:
                    yield
                try:
                    cells.append(self._table.cell(file.name, entry.key))
                    values.append(entry.value)
                except LeftOutError as reason:
                    file.leave_out(reason.reason, str(reason))
            self._files.accept(file)
        except FileFault as fault:
            self._replan = True
            self._files.reject(file, fault)
            return
        file.place(values, cells)
        retired = self._awakened.pop(file.path, None)
        if retired is not None and retired.file is file and file.name.type != "gauge":
            file.baseline = retired.baseline()

    def _gather(self) -> list[MultiprocessFile]:
        """Read all values, and return the files that have more than is known."""
        while True:
            if self._replan:
                self._plan()
            try:
                self._changed = self._reading.read() or self._changed
            except UnreadableError as error:
                for file, fault in error.faults.items():
                    self._files.reject(file, fault)
                self._replan = True
            else:
                return [file for file in self._reading.stale_files() if not file.waiting]

    def _plan(self) -> None:
        """Lay out reading and computing for the files and cells as they are now."""
        self._replan = False
        self._changed = True
        self._reading = Reading(list(self._files.good.values()), self._cells)
        self._aggregation = Aggregation(self._reading.cells, self._cells)
        gone = self._cells.without(self._aggregation.counts)
        if gone:
            self._table.remove(gone, self._aggregation.counts)
            # There is room again, or a family's name is free.
            self._again = [
                file for file in self._reading.files if file.left_out and file.baseline is None
            ]
        if self._accumulate:
            self._aggregation.accumulate_buckets(self._table.families.values())
        for family in self._page.gone(self._table.families.values()):
            self._page.remove(family)

    def _show(self) -> Iterator[None]:
        if not self._changed:
            return
        self._aggregation.apply(self._reading.values, self._reading.timestamps)
        families = list(self._table.families.values())
        restructured = [family for family in families if family.restructured]
        done = 0
        while done < len(restructured):
            done += self._page.rebuild(restructured[done:])
            yield
        updated = False
        while count := self._page.update():
            updated = True
            if count < LINES_PER_UPDATE:
                break
            yield
        if updated or restructured or len(families) != len(self.families):
            self.families = self._page.families(self._table.families)
        self._changed = False

    def _end(self, file: MultiprocessFile) -> None:
        """Give up a file that went or was replaced, and keep what it had counted if told to."""
        self._replan = True
        if self._keep_totals and file.name.type != "gauge":
            if not self._before.size:
                self._before = self._cells.values.copy()
            cells, counted, baseline, used = (
                file.cells,
                self._counted(file),
                file.baseline,
                file.used,
            )
            if file.descriptor != CLOSED:  # its last state is there for those who hold it open
                with suppress(FileFault):
                    for _ in self._parse(file):
                        pass
                    if file.used >= used and file.descriptor != CLOSED:
                        counted, cells, baseline = file.last_values(), file.cells, file.baseline
            self._fold(cells, counted, baseline)
        self._files.give_up(file)

    def _counted(self, file: MultiprocessFile) -> NDArray[np.float64]:
        """What a file had counted when it was last read; float64, as many as it has cells.

        None: a gauge has no past, and a bad file none that can be known.
        """
        if file.name.type == "gauge" or not file.cells.size:
            return np.zeros(0)
        return self._reading.values_of(file).copy()

    def _fold(
        self,
        cells: NDArray[np.int32],
        values: NDArray[np.float64],
        baseline: NDArray[np.float64] | None,
    ) -> None:
        """Add a file's values, less what they count from, to the base of their cells."""
        if not values.size:
            return
        np.add.at(self._cells.base, cells, values if baseline is None else values - baseline)
        self._cells.based[cells] = True

    def _removed(self, file: MultiprocessFile) -> bool:
        try:
            unlink(file)
        except FileFault as fault:
            self._not_removed.append((file.path, fault.reason, str(fault)))
            return False
        return True

    def _mend_totals(self, before: NDArray[np.float64]) -> None:
        """Added up in another order, a total must not lose its last bit.

        For Prometheus that would be a counter's reset.

        Args:
            before: the cells' values before files were folded.
        """
        cells = self._cells
        self._aggregation.apply(self._reading.values, self._reading.timestamps)
        known = before.size  # others have come since
        short = np.flatnonzero(cells.based[:known] & (cells.values[:known] < before))
        for _ in range(_LAST_BITS):
            if not short.size:
                return
            missing = before[short] - cells.values[short]
            smallest = np.nextafter(cells.base[short], np.inf) - cells.base[short]
            cells.base[short] += np.maximum(missing, smallest)
            self._aggregation.apply(self._reading.values, self._reading.timestamps)
            short = short[cells.values[short] < before[short]]

    def _all_faults(self) -> list[tuple[str, Reason, str]]:
        directories = [(path, fault.reason, str(fault)) for path, fault in self._tree.faults]
        return directories + self._files.faults + self._not_removed
