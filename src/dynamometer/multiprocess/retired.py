"""Processes that have ended, of which files are still there.

Their files are read like others, so that no total depends on what is remembered of them; only
their gauges are hidden. A process that has got the number of one and goes on with its files is
noticed by the first value that changes, or by a new file.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from itertools import islice
from pathlib import Path
from typing import Final

from dynamometer.multiprocess.faults import FileFault, Reason
from dynamometer.multiprocess.metrics_file import MultiprocessFile
from dynamometer.multiprocess.open_files import unlink

_REMOVED_AT_ONCE: Final = 16


class RetiredProcesses:
    """The processes, as the names of files have them, and their files that could not be removed."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._not_removed: dict[str, tuple[MultiprocessFile, FileFault]] = {}

    @property
    def faults(self) -> list[tuple[str, Reason, str]]:
        """The files that should have been removed and are still there."""
        return [(path, fault.reason, str(fault)) for path, (_, fault) in self._not_removed.items()]

    def add(self, file: MultiprocessFile) -> None:
        """Hide the gauges of a file; keep in the totals what another type of file has counted."""
        self.names.add(file.name.process)
        if file.name.type == "gauge":
            file.hide()
        else:
            file.kept = True

    def keep(self, processes: Set[str], paths: Collection[str]) -> None:
        """Forget the processes and files that are gone.

        Args:
            processes: those that have files.
            paths: all files.
        """
        self.names &= processes
        for path in self._not_removed.keys() - set(paths):
            del self._not_removed[path]

    def end(self, processes: Set[str]) -> Set[str]:
        """Return those of some processes that were retired, and retire them no more."""
        found = self.names & processes
        self.names -= found
        for path, (file, _) in list(self._not_removed.items()):
            if file.name.process in found:
                del self._not_removed[path]
        return found

    def remove(self, file: MultiprocessFile) -> bool | None:
        """Remove a file.

        Returns:
            True where the file was removed, False where it was already missing, None where it
            is still there: `faults` has it until `to_remove` brings it again.
        """
        try:
            return unlink(file)
        except FileFault as fault:
            self._not_removed[file.path] = file, fault
            return None

    def to_remove(self) -> list[MultiprocessFile]:
        """Take a few files that could not be removed, of processes whose numbers are free."""
        found = [file for file, _ in self._not_removed.values() if not _may_live(file.name.process)]
        chosen = list(islice(found, _REMOVED_AT_ONCE))
        for file in chosen:
            del self._not_removed[file.path]
        return chosen


def _may_live(process: str) -> bool:
    return process.isdecimal() and Path("/proc", process).exists()
