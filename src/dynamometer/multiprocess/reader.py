"""Keeps a page current with a set of multiprocess files.

One reading is a row of small steps: look which files there are, parse the keys that are new,
gather all values, compute the cells, format what changed. When nothing is new, it is one
look at each directory, one system call a file, and a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import Final

import numpy as np

from dynamometer.exposition.families import Family
from dynamometer.multiprocess import kept_counts
from dynamometer.multiprocess.aggregation import Aggregation
from dynamometer.multiprocess.bulk_read import BulkRead, UnreadableFilesError
from dynamometer.multiprocess.cells import Cells
from dynamometer.multiprocess.chunks import LINES_PER_UPDATE, Chunks
from dynamometer.multiprocess.faults import FaultLog, FileFault, OmittedError, Reason
from dynamometer.multiprocess.key_table import KeyTable
from dynamometer.multiprocess.metrics_file import MultiprocessFile
from dynamometer.multiprocess.open_files import OpenFiles
from dynamometer.multiprocess.retired import RetiredProcesses
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
            keep_totals: what files that are gone had counted stays in the totals, whether or not
                their processes were retired.
            accumulate: add up a histogram's buckets, and make its `_count` of them.
        """
        self.families: tuple[Family, ...] = ()
        self._tree = tree
        self._accumulate = accumulate
        self._faults = FaultLog()
        self._files = OpenFiles()
        self._retired = RetiredProcesses()
        self._cells = Cells()
        self._keep_totals = keep_totals
        self._kept = kept_counts.KeptCounts(self._cells)
        self._table = KeyTable(self._cells, labels, max_series=max_series, accumulate=accumulate)
        self._page = Chunks(self._cells)
        self._again: list[MultiprocessFile] = []
        self._resumed: frozenset[str] = frozenset()  # retired processes to be read again
        self._replan = False
        self._changed = True
        self._keeping = False  # whether the last values of any file are needed
        self._before = np.empty(0)  # the cells' values before files ended in this reading
        self._reading = BulkRead([], self._cells)
        self._aggregation = Aggregation(self._reading.cells, self._cells)

    @property
    def errors(self) -> Mapping[str, int]:
        """How often a file, or series of one, was left out, by reason; only grows."""
        return self._faults.counts

    @property
    def processes(self) -> Mapping[str, Sequence[str]]:
        """The paths of the files of each process that is not retired, as of the last reading."""
        return {
            process: [file.path for file in files]
            for process, files in self._files.processes.items()
            if process not in self._retired.names
        }

    def steps(self) -> Iterator[None]:
        """One reading; it is complete when the iterator ends, and in between nothing shows."""
        self._before = np.empty(0)
        listed, unread = self._follow_files()
        yield
        for left in reversed(range(_ROUNDS)):
            for file in unread:
                yield from self._parse(file)
            if unread:
                self._replan = True
            unread = self._gather()
            if left:  # what is forgotten must be read again
                again = self._begun_again(looked_at=True) + self._resume_changed()
                unread = list(dict.fromkeys(unread + again))
            if not unread:
                break
        self._table.forget_keys()
        self._keep_counted()
        if listed:
            self._remove(self._retired.to_remove())
        if self._before.size:
            kept_counts.keep(self._before, self._cells, self._apply)
        yield
        yield from self._show()
        self._faults.note(self._all_faults())

    def retire(self, processes: frozenset[str], *, owned: bool) -> None:
        """Keep what ended processes have counted, and hide their gauges.

        A reading must have just been made.

        Args:
            processes: their identifiers, as the files' names have them.
            owned: remove their files.
        """
        self._before = self._cells.values.copy()
        files = self._files.of_processes(processes)
        read = set(self._reading.files)
        for file in files:
            self._retired.add(file)
            if file in read:
                file.counted = self._reading.values_of(file).copy()
                file.seen = True
        if owned:
            self._remove(files + self._retired.to_remove())
        self._replan = True
        self._gather()
        kept_counts.keep(self._before, self._cells, self._apply)
        for _ in self._show():
            pass

    def resume(self, processes: frozenset[str]) -> None:
        """Show the gauges of these retired processes again, from the next reading on."""
        self._resumed |= processes

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def _follow_files(self) -> tuple[bool, list[MultiprocessFile]]:
        """Look which files there are.

        Returns:
            Whether any may have come or gone, and those of which something is to be parsed.
        """
        new: list[MultiprocessFile] = []
        resumed, self._resumed = self._resumed, frozenset()
        listed = self._tree.refresh()
        if listed:
            known = self._files.paths
            for file in self._files.ended(self._tree.files):
                self._end(file)
            new = self._files.follow(self._tree.files)
            resumed |= {file.name.process for file in new if file.path not in known}
        shown = self._show_again(resumed)
        if listed:
            for file in new:
                file.kept = self._keep_totals and file.name.type != "gauge"
                if file.name.process in self._retired.names:
                    self._retired.add(file)
            if self._retired.names:
                there = self._files.names | {file.name.process for file in new}
                self._retired.keep(there, self._tree.files)
        unread = self._begun_again(looked_at=False)
        again = set(unread)
        unread += [file for file in self._files.good.values() if file.waiting and file not in again]
        unread += self._files.bad_files()
        return listed, list(dict.fromkeys(unread + shown + new))

    def _resume_changed(self) -> list[MultiprocessFile]:
        """End the retirement of processes that count again; return their gauges' files."""
        if not self._retired.names:
            return []
        return self._show_again(
            {
                file.name.process
                for file in self._reading.changed_files()
                if file.name.process in self._retired.names
                and file.changed(self._reading.values_of(file))
            }
        )

    def _show_again(self, processes: Set[str]) -> list[MultiprocessFile]:
        """End the retirement of processes; return their gauges' files, which are to be parsed."""
        found = self._retired.end(processes)
        if not found:
            return []
        hidden = [file for file in self._files.of_processes(frozenset(found)) if file.hidden]
        for file in hidden:
            file.show()
        return hidden

    def _remove(self, files: Sequence[MultiprocessFile]) -> None:
        """Remove files of ended processes, and fold what they have counted into the totals."""
        for file in files:
            removed = self._retired.remove(file)
            if removed is not None:
                self._files.give_up(file)
                file.stash()
                self._set_aside(file, removed=removed)
                self._replan = True
        if self._replan:
            self._gather()

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
        try:
            found = file.new_entries()
            self._set_aside(file)
            for number, entry in enumerate(found):
                if number % KEYS_PER_STEP == KEYS_PER_STEP - 1:
                    yield
                try:
                    cells.append(self._table.cell(file.name, entry.key))
                    values.append(entry.value)
                except OmittedError as reason:
                    file.leave_out(reason.reason, str(reason))
            self._files.accept(file)
            file.place(values, cells)
            self._kept.resume(file)
        except FileFault as fault:
            self._reject(file, fault)

    def _reject(self, file: MultiprocessFile, fault: FileFault) -> None:
        self._replan = True
        self._files.reject(file, fault)
        self._set_aside(file)

    def _set_aside(self, file: MultiprocessFile, *, removed: bool = False) -> None:
        """Keep in the totals what a file had counted before it was forgotten."""
        if self._kept.set_aside(file, removed=removed):
            self._replan = True
            if not self._before.size:
                self._before = self._cells.values.copy()

    def _keep_counted(self) -> None:
        """Keep the values as just read, once it is clear what they count from."""
        suspected = {file for file in self._reading.files if file.suspected}
        if not (self._keeping and (self._changed or suspected)):
            return
        for _ in range(_ROUNDS):
            changed = dict.fromkeys([*self._reading.changed_files(), *suspected])
            judged = [
                self._kept.judge(file, self._reading.values_of(file), suspected=file in suspected)
                for file in changed
                if file.kept
            ]
            if not any(judged):
                break
            if not self._before.size:
                self._before = self._cells.values.copy()
            self._replan = True
            self._gather()
        for file in self._reading.changed_files():
            if file.kept or file.hidden:
                now = self._reading.values_of(file)
                if now.any():  # zeros alone are an odd reading, or nothing that can be kept
                    file.counted = now.copy()
                file.seen = True

    def _gather(self) -> list[MultiprocessFile]:
        """Read all values, and return the files that have more than is known."""
        while True:
            if self._replan:
                self._plan()
            try:
                self._changed = self._reading.read() or self._changed
            except UnreadableFilesError as error:
                for file, fault in error.faults.items():
                    self._reject(file, fault)
            else:
                return [file for file in self._reading.stale_files() if not file.waiting]

    def _plan(self) -> None:
        """Lay out reading and computing for the files and cells as they are now."""
        self._replan = False
        self._changed = True
        self._reading = BulkRead(list(self._files.good.values()), self._cells)
        self._keeping = any(file.kept or file.hidden for file in self._reading.files)
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
        if file.kept:
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

    def _all_faults(self) -> list[tuple[str, Reason, str]]:
        directories = [(path, fault.reason, str(fault)) for path, fault in self._tree.faults]
        return directories + self._files.faults + self._retired.faults
