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
from dynamometer.multiprocess import totals
from dynamometer.multiprocess.aggregate import Aggregation
from dynamometer.multiprocess.cells import Cells
from dynamometer.multiprocess.faults import FaultLog, FileFault, LeftOutError, Reason
from dynamometer.multiprocess.file import MultiprocessFile
from dynamometer.multiprocess.files import OpenFiles
from dynamometer.multiprocess.page import LINES_PER_UPDATE, Page
from dynamometer.multiprocess.reading import Reading, UnreadableError
from dynamometer.multiprocess.retired import RetiredFiles
from dynamometer.multiprocess.series import SeriesTable
from dynamometer.multiprocess.tree import FileSource
from dynamometer.process.descriptors import CLOSED

KEYS_PER_STEP: Final = 64
# A file that grows while it is read is followed this often; the rest comes the next time.
_ROUNDS: Final = 3


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
        self._faults = FaultLog()
        self._files = OpenFiles()
        self._retired = RetiredFiles()
        self._cells = Cells()
        self._kept = totals.KeptTotals(self._cells) if keep_totals else None
        self._table = SeriesTable(self._cells, labels, max_series=max_series, accumulate=accumulate)
        self._page = Page(self._cells)
        self._again: list[MultiprocessFile] = []
        self._resumed: frozenset[str] = frozenset()  # retired processes to be read again
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
        for left in reversed(range(_ROUNDS)):
            for file in unread:
                yield from self._parse(file)
            if unread:
                self._replan = True
            unread = self._gather()
            if left:  # what is forgotten must be read again
                unread = list(dict.fromkeys(unread + self._begun_again(looked_at=True)))
            if not unread:
                break
        self._table.forget_keys()
        self._keep_counted()
        if self._before.size:
            totals.keep(self._before, self._cells, self._apply)
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
            if self._kept is None:
                totals.fold(counted, file.cells, file.baseline, self._cells)
            else:
                file.stash()
                self._kept.set_aside(file)
            self._files.give_up(file)
            self._retired.add(file, counted, remove=owned)
        if owned:
            self._retired.remove_again()
        self._replan = True
        self._gather()
        totals.keep(before, self._cells, self._apply)
        for _ in self._show():
            pass

    def resume(self, processes: frozenset[str]) -> None:
        """Read the retired files of these processes again, at the next reading."""
        self._resumed |= processes

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def _follow_files(self) -> list[MultiprocessFile]:
        """Look which files there are; those of which something is to be parsed."""
        new: list[MultiprocessFile] = []
        listed = self._tree.refresh()
        if listed:
            listing = self._tree.files
            self._retired.keep(listing)
            if self._retired:
                listing = {
                    path: inode for path, inode in listing.items() if path not in self._retired
                }
            for file in self._files.ended(listing):
                self._end(file)
            new = self._files.follow(listing)
        unread = self._begun_again(looked_at=False)
        again = set(unread)
        unread += [file for file in self._files.good.values() if file.waiting and file not in again]
        unread += self._files.bad_files()
        begun = {file.name.process for file in new} | self._resumed
        unread += self._retired.awaken(begun)
        self._resumed = frozenset()
        if listed:
            self._retired.remove_again()
        return unread + new

    def _begun_again(self, *, looked_at: bool) -> list[MultiprocessFile]:
        """The files whose series were left out and may have a place now, to be read anew.

        Args:
            looked_at: this reading has looked at them; a half-written key that is seen twice is
                a fault, so that it waits for the next one.
        """
        good = self._files.good
        again = [file for file in self._again if file.path in good]
        self._again = [file for file in again if looked_at and file.waiting]
        begun = [file for file in again if file not in self._again]
        for file in begun:
            file.forget()
            self._set_aside(file)
        return begun

    def _parse(self, file: MultiprocessFile) -> Iterator[None]:
        values: list[int] = []
        cells: list[int] = []
        from_beginning = not file.used
        try:
            found = file.new_entries()
            self._set_aside(file)
            for number, entry in enumerate(found):
                if number % KEYS_PER_STEP == KEYS_PER_STEP - 1:
                    yield
                try:
                    cells.append(self._table.cell(file.name, entry.key))
                    values.append(entry.value)
                except LeftOutError as reason:
                    file.leave_out(reason.reason, str(reason))
            self._files.accept(file)
            file.place(values, cells)
            if from_beginning and file.baseline is None:
                file.baseline = self._retired.baseline(file)
            elif file.baseline is None:
                self._retired.forget(file)
            if self._kept is not None:
                self._kept.resume(file)
        except FileFault as fault:
            self._reject(file, fault)

    def _reject(self, file: MultiprocessFile, fault: FileFault) -> None:
        self._replan = True
        self._files.reject(file, fault)
        self._set_aside(file)

    def _set_aside(self, file: MultiprocessFile) -> None:
        """Keep in the totals what a file had counted before it was forgotten."""
        if self._kept is not None and self._kept.set_aside(file):
            self._replan = True
            if not self._before.size:
                self._before = self._cells.values.copy()

    def _keep_counted(self) -> None:
        """Keep the values as just read, once it is clear what they count from."""
        kept = self._kept
        suspected = {file for file in self._reading.files if file.suspected}
        if kept is None or not (self._changed or suspected):
            return
        for _ in range(_ROUNDS):
            judged = [
                kept.judge(file, self._reading.values_of(file), suspected=file in suspected)
                for file in self._reading.files
                if file.name.type != "gauge"
            ]
            if not any(judged):
                break
            if not self._before.size:
                self._before = self._cells.values.copy()
            self._replan = True
            self._gather()
        for file in self._reading.files:
            if file.name.type != "gauge":
                file.counted = self._reading.values_of(file).copy()
                file.seen = True

    def _gather(self) -> list[MultiprocessFile]:
        """Read all values, and return the files that have more than is known."""
        while True:
            if self._replan:
                self._plan()
            try:
                self._changed = self._reading.read() or self._changed
            except UnreadableError as error:
                for file, fault in error.faults.items():
                    self._reject(file, fault)
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
            self._again = [file for file in self._reading.files if file.left_out]
        if self._accumulate:
            self._aggregation.accumulate_buckets(self._table.families.values())
        for family in self._page.gone(self._table.families.values()):
            self._page.remove(family)

    def _show(self) -> Iterator[None]:
        if not self._changed:
            return
        self._apply()
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

    def _apply(self) -> None:
        self._aggregation.apply(self._reading.values, self._reading.timestamps)

    def _end(self, file: MultiprocessFile) -> None:
        """Give up a file that went or was replaced, and keep its totals if they are kept."""
        self._replan = True
        if self._kept is not None and file.name.type != "gauge":
            self._take_last_state(file)
            file.stash()
            self._set_aside(file)
        self._files.give_up(file)

    def _take_last_state(self, file: MultiprocessFile) -> None:
        """Read the last values of a file that has gone, where it is held open."""
        if file.descriptor == CLOSED:
            return
        before = file.counted
        for _ in self._parse(file):
            pass
        if file.descriptor == CLOSED or file.counted is not before:
            return  # bad, or another's: what it had counted is set aside
        with suppress(FileFault):
            last = file.last_values()
            if before is None or bool((last[: before.size] >= before).all()):
                file.counted = last

    def _counted(self, file: MultiprocessFile) -> NDArray[np.float64]:
        """What a file had counted when it was last read; float64, as many as it has cells.

        None: a gauge has no past, and a bad file none that can be known.
        """
        if file.name.type == "gauge" or not file.cells.size:
            return np.zeros(0)
        return self._reading.values_of(file).copy()

    def _all_faults(self) -> list[tuple[str, Reason, str]]:
        directories = [(path, fault.reason, str(fault)) for path, fault in self._tree.faults]
        return directories + self._files.faults + self._retired.faults
