"""Ended processes whose files may still be there.

Their counters are read like those of other processes; only their gauges are hidden. A process
resumes when a new process with the same identifier continues its files: a value changes, or a file
is added.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.faults import FileFault, Reason
from dynamometer.multiprocess.kept_counts import fell_to_zeros
from dynamometer.multiprocess.metrics_file import MetricsFile

_REMOVED_AT_ONCE: Final = 16


class RetiredProcesses:
    """The retired processes, and their files.

    Attributes:
        names: the processes' identifiers, as in the names of their files.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._last: dict[MetricsFile, NDArray[np.float64]] = {}  # at the last complete reading
        self._not_removed: dict[str, tuple[MetricsFile, FileFault]] = {}

    @property
    def faults(self) -> list[tuple[str, Reason, str]]:
        """The files that could not be removed."""
        return [(path, fault.reason, str(fault)) for path, (_, fault) in self._not_removed.items()]

    def owns(self, file: MetricsFile) -> bool:
        """Return whether a file is of a retired process."""
        return file.name.process in self.names

    def record(self, file: MetricsFile, values: NDArray[np.float64]) -> None:
        """Record the values of a complete reading, unless all of them fell to zero."""
        if not fell_to_zeros(self._last.get(file), values):
            self._last[file] = values.copy()

    def has_resumed(self, file: MetricsFile, values: NDArray[np.float64]) -> bool:
        """Return whether a retired process's file has other values than at the last reading.

        Values that all fell to zero may be wrong, or the process has not counted yet.

        Args:
            file: the file.
            values: float64, as just read.
        """
        last = self._last.get(file)
        if last is None or not self.owns(file) or fell_to_zeros(last, values):
            return False
        return last.tobytes() != values.tobytes()

    def forget_values(self, file: MetricsFile) -> None:
        """Forget the values of a file whose content is forgotten."""
        self._last.pop(file, None)

    def forget_missing(self, processes: Set[str], paths: Collection[str]) -> None:
        """Forget the processes without files, and removed files.

        Args:
            processes: the processes that have files.
            paths: the paths of all files.
        """
        self.names &= processes
        for path in self._not_removed.keys() - set(paths):
            del self._not_removed[path]

    def resume(self, processes: Set[str]) -> Set[str]:
        """End the retirement of some processes; return those of them that were retired."""
        found = self.names & processes
        self.names -= found
        self._last = {
            file: values for file, values in self._last.items() if file.name.process not in found
        }
        for path, (file, _) in list(self._not_removed.items()):
            if file.name.process in found:
                del self._not_removed[path]
        return found

    def remove(self, file: MetricsFile) -> bool | None:
        """Remove a file.

        Returns:
            True where the file was removed, False where it was already missing, None where it
            cannot be removed: `faults` has it until `take_unremoved` returns it for the next try.
        """
        try:
            return file.unlink()
        except FileFault as fault:
            self._not_removed[file.path] = file, fault
            return None

    def take_unremoved(self) -> list[MetricsFile]:
        """Return and forget a few files that could not be removed, of processes that do not run."""
        found = [file for file, _ in self._not_removed.values() if not _may_run(file.name.process)]
        chosen = list(islice(found, _REMOVED_AT_ONCE))
        for file in chosen:
            del self._not_removed[file.path]
        return chosen


def _may_run(process: str) -> bool:
    return process.isdecimal() and Path("/proc", process).exists()
