"""One reading: from the files of a tree to the families of a page.

`Reader.read` finds the files, parses new keys, reads all values, decides which counts are held,
computes the cells and formats those that changed. When nothing is new, a reading costs one system
call per directory, one system call per file, and a comparison of the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import Family
from dynamometer.exposition.label_bounds import LabelBounds
from dynamometer.multiprocess.aggregation import Aggregation, CellValues
from dynamometer.multiprocess.bulk_read import BulkRead, UnreadableFilesError
from dynamometer.multiprocess.cells import HIDDEN, Cells
from dynamometer.multiprocess.chunks import Chunks
from dynamometer.multiprocess.faults import FaultLog, FileFault, OmittedError, Reason
from dynamometer.multiprocess.kept_counts import KeptCounts
from dynamometer.multiprocess.key_table import KeyTable
from dynamometer.multiprocess.metrics_file import MetricsFile
from dynamometer.multiprocess.open_files import OpenFiles
from dynamometer.multiprocess.retired import RetiredProcesses
from dynamometer.multiprocess.tree import FileSource
from dynamometer.process.descriptors import CLOSED

# A file that grows while it is read is parsed at most this many times in one reading; the next
# reading parses the rest.
_MAX_PARSES: Final = 3
# A correction smaller than a total's precision can be lost to rounding; each further try adds more.
_MAX_CORRECTIONS: Final = 4


class Reader:
    """The files of a tree, read again and again.

    Attributes:
        families: the page's families as of the last reading, sorted by name. An unchanged family
            is the same object as before; the tuple is the same where no family changed.
    """

    def __init__(
        self,
        tree: FileSource,
        labels: Mapping[str, str],
        *,
        max_series: int,
        accumulate: bool = True,
        keep_totals: bool = False,
        label_bounds: LabelBounds | None = None,
    ) -> None:
        """Prepare to read; no file is read yet.

        Args:
            tree: finds the files.
            labels: constant labels, added to each series that does not have them.
            max_series: the maximum number of series.
            accumulate: accumulate a histogram's buckets, and derive its `_count` from them.
            keep_totals: keep the counts of all removed files, not only of retired processes.
            label_bounds: the bounds of label values; None for no bounds.
        """
        self.families: tuple[Family, ...] = ()
        self._tree = tree
        self._accumulate = accumulate
        self._keep_totals = keep_totals
        self._faults = FaultLog()
        self._files = OpenFiles()
        self._retired = RetiredProcesses()
        self._to_resume: frozenset[str] = frozenset()  # processes that the next reading resumes
        self._cells = Cells()
        self._kept = KeptCounts(self._cells)
        self._table = KeyTable(
            self._cells,
            labels,
            max_series=max_series,
            accumulate=accumulate,
            label_bounds=label_bounds,
        )
        self._chunks = Chunks(self._cells)
        # Files with omitted series, to be parsed again because other series were removed.
        self._files_to_retry: list[MetricsFile] = []
        self._plan_outdated = False  # whether files, or the known content of a file, changed
        self._changed = True  # whether the cells must be computed
        self._bulk = BulkRead([], self._cells)
        self._aggregation = Aggregation(self._bulk.cells, self._cells)
        self._values = np.empty(0)  # the values of all cells, as last computed

    @property
    def errors(self) -> Mapping[str, int]:
        """The number of omissions of a file, or of some of its series, by reason; only grows."""
        return self._faults.counts

    @property
    def processes(self) -> Mapping[str, Sequence[str]]:
        """The paths of the files of each process that is not retired, as of the last reading."""
        return {
            process: [file.path for file in files]
            for process, files in self._files.processes.items()
            if process not in self._retired.names
        }

    def continue_faults(self, former: Reader) -> None:
        """Continue the counts of a former reader of the same files, and do not log them again."""
        self._faults = former._faults

    def read(self) -> None:
        """Read the files, and bring `families` and `errors` up to date."""
        self._kept.begin_reading()
        listed = self._tree.refresh()
        self._read_values(self._follow_files(listed=listed))
        self._table.forget_keys()
        self._update_kept_counts()
        if listed:
            self._remove(self._retired.take_unremoved())
        self._update_families()
        self._faults.note(self._all_faults())

    def retire(self, processes: frozenset[str], *, owned: bool) -> None:
        """Keep the counts of ended processes, and hide their gauges.

        Call `read` immediately before this.

        Args:
            processes: their identifiers, as in the names of their files.
            owned: whether to remove their files.
        """
        self._kept.begin_reading()
        files = self._files.find_by_process(processes)
        files_read = set(self._bulk.files)
        for file in files:
            self._retired.names.add(file.name.process)
            self._hide_or_keep(file)
            if file in files_read:
                self._record(file)
        self._plan_outdated = True
        if owned:
            self._remove(files + self._retired.take_unremoved())
        self._read_all()
        self._update_families()

    def resume(self, processes: frozenset[str]) -> None:
        """End the retirement of processes: the next reading shows their gauges again."""
        self._to_resume |= processes

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    # The files that must be parsed.

    def _follow_files(self, *, listed: bool) -> list[MetricsFile]:
        """Follow added, removed and replaced files; return the files that must be parsed.

        Args:
            listed: whether files may have been added, removed or replaced.
        """
        to_resume, self._to_resume = self._to_resume, frozenset()
        new: list[MetricsFile] = []
        if listed:
            known = self._files.paths
            for file in self._files.find_removed(self._tree.files):
                self._drop_removed(file)
            new = self._files.follow(self._tree.files)
            to_resume |= {file.name.process for file in new if file.path not in known}
        resumed = self._resume(to_resume)
        for file in new:
            if self._retired.owns(file):
                self._hide_or_keep(file)
            elif self._keep_totals and file.name.type != "gauge":
                self._kept.keep(file)
        if listed and self._retired.names:
            present = self._files.process_names | {file.name.process for file in new}
            self._retired.forget_missing(present, self._tree.files)
        unparsed = self._retry_omitted()
        unparsed += [file for file in self._files.valid.values() if file.content.incomplete]
        return list(dict.fromkeys([*unparsed, *self._files.invalid, *resumed, *new]))

    def _drop_removed(self, file: MetricsFile) -> None:
        """Drop a file that was removed or replaced; hold its counts if they are kept."""
        self._plan_outdated = True
        if self._kept.keeps(file):
            self._record_last_state(file)
        self._hold_and_forget(file, ended=True)
        self._files.drop(file)

    def _record_last_state(self, file: MetricsFile) -> None:
        """Record the last values of a removed file that is still open, unless any value fell."""
        if file.descriptor == CLOSED or not self._parse(file):
            return
        before = self._kept.last_values(file)
        with suppress(FileFault):
            last = file.last_values()
            if before is None or bool((last[: before.size] >= before).all()):
                self._kept.record(file, last)

    def _resume(self, processes: Set[str]) -> list[MetricsFile]:
        """End the retirement of some processes; return their gauges' files, to be parsed."""
        found = self._retired.resume(processes)
        if not found:
            return []
        hidden = [file for file in self._files.find_by_process(frozenset(found)) if file.hidden]
        for file in hidden:
            file.show()
        return hidden

    def _retry_omitted(self) -> list[MetricsFile]:
        """Forget the content of `_files_to_retry`; return these files, to be parsed."""
        files = [file for file in self._files_to_retry if file.path in self._files.valid]
        self._files_to_retry = []
        for file in files:
            self._hold_and_forget(file)
            file.reset()
        return files

    def _resume_changed(self) -> list[MetricsFile]:
        """Resume retired processes whose values changed; return their gauges' files for parsing."""
        if not self._retired.names:
            return []
        return self._resume(
            {
                file.name.process
                for file in self._bulk.changed_files()
                if self._retired.has_resumed(file, self._bulk.values_of(file))
            }
        )

    # The values of all files.

    def _read_values(self, unparsed: Sequence[MetricsFile]) -> None:
        """Parse files, and read all values until no file has unknown entries."""
        for remaining in reversed(range(_MAX_PARSES)):
            for file in unparsed:
                self._parse(file)
            if unparsed:
                self._plan_outdated = True
            unparsed = self._read_all()
            if remaining:  # not in the last round: files that it forgets would stay unparsed
                forgotten = [*self._retry_omitted(), *self._resume_changed()]
                unparsed = list(dict.fromkeys([*unparsed, *forgotten]))
            if not unparsed:
                break

    def _parse(self, file: MetricsFile) -> bool:
        """Parse the new entries of a file; return whether its known entries are still valid."""
        try:
            found = file.read_new_entries()
            if found.replaced:
                self._hold_and_forget(file)
            value_places: list[int] = []
            cells: list[int] = []
            for entry in found.entries:
                try:
                    cell = HIDDEN if file.hidden else self._table.find_cell(file.name, entry.key)
                except OmittedError as error:
                    file.omit(error.reason, str(error))
                else:
                    value_places.append(entry.value_place)
                    cells.append(cell)
            self._files.accept(file)
            file.extend(found.content, value_places, cells)
        except FileFault as fault:
            self._reject(file, fault)
            return False
        return not found.replaced

    def _read_all(self) -> list[MetricsFile]:
        """Read all values, and return the files with unparsed entries."""
        while True:
            if self._plan_outdated:
                self._plan()
            try:
                self._changed = self._bulk.read() or self._changed
            except UnreadableFilesError as error:
                for file, fault in error.faults.items():
                    self._reject(file, fault)
            else:
                return [file for file in self._bulk.stale_files() if not file.content.incomplete]

    def _plan(self) -> None:
        """Prepare to read the present files, and to compute the present cells."""
        self._plan_outdated = False
        self._changed = True
        self._bulk = BulkRead(list(self._files.valid.values()), self._cells)
        self._aggregation = Aggregation(self._bulk.cells, self._cells)
        self._kept.plan(self._bulk.files)
        used = self._aggregation.has_values | self._kept.has_counts
        unused = self._cells.find_unused(used)
        if unused:
            self._table.remove(unused, used)
            self._files_to_retry = [file for file in self._bulk.files if file.omitted]
        if self._accumulate:
            self._aggregation.accumulate_buckets(self._table.families.values())

    def _reject(self, file: MetricsFile, fault: FileFault) -> None:
        """Close an invalid file; hold its counts if they are kept."""
        self._plan_outdated = True
        self._files.reject(file, fault)
        self._hold_and_forget(file)

    def _hold_and_forget(self, file: MetricsFile, *, ended: bool = False) -> None:
        """Hold a file's counts if they are kept, and forget its content."""
        self._kept.hold(file, ended=ended)
        self._retired.forget_values(file)
        file.forget()

    # Kept counts and retired processes.

    def _update_kept_counts(self) -> None:
        """Decide which counts are held, and record the values of this reading."""
        if self._kept.empty and not self._retired.names:
            return
        suspected = self._kept.suspected_replacements(self._bulk.files)
        if not self._changed and not suspected:
            return
        changed = self._bulk.changed_files()
        plan_needed = [
            self._kept.judge(file, self._bulk.values_of(file))
            for file in dict.fromkeys([*changed, *suspected])
            if self._kept.keeps(file)
        ]
        if any(plan_needed):
            self._kept.plan(self._bulk.files)
            self._changed = True
        for file in changed:
            self._record(file)

    def _record(self, file: MetricsFile) -> None:
        """Record the values of a file that is kept, or whose process is retired."""
        if self._kept.keeps(file):
            self._kept.record(file, self._bulk.values_of(file))
        if self._retired.owns(file):
            self._retired.record(file, self._bulk.values_of(file))

    def _hide_or_keep(self, file: MetricsFile) -> None:
        """Hide the gauges in a retired process's file, or keep the counts in its other files."""
        if file.name.type == "gauge":
            file.hide()
        else:
            self._kept.keep(file)

    def _remove(self, files: Sequence[MetricsFile]) -> None:
        """Remove files of retired processes, and add their counts to the totals permanently."""
        for file in files:
            removed = self._retired.remove(file)
            if removed is None:
                continue
            if removed:
                self._kept.add(file)
            self._hold_and_forget(file, ended=True)
            self._files.drop(file)
            self._plan_outdated = True
        if self._plan_outdated:
            self._read_all()

    # The page.

    def _update_families(self) -> None:
        """Compute the cells and update `families`, if anything changed."""
        if not self._changed:
            return
        before = self._values
        computed = self._compute()
        if self._kept.changed:
            for _ in range(_MAX_CORRECTIONS):
                if not self._kept.correct(before, computed.values):
                    break
                computed = self._compute()
        self._values = computed.values
        self.families = self._chunks.update(self._table.families, computed)
        self._changed = False

    def _compute(self) -> CellValues:
        values: NDArray[np.float64] = self._kept.raise_to_held(self._bulk.values)
        return self._aggregation.compute(values, self._bulk.timestamps, self._kept.base)

    def _all_faults(self) -> list[tuple[str, Reason, str]]:
        directories = [(path, fault.reason, str(fault)) for path, fault in self._tree.faults]
        return directories + self._files.faults + self._retired.faults
