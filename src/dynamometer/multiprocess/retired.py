"""Ended processes whose files may still be there.

Their counters are read like others; only their gauges are hidden. A new process with the same
identifier that continues the files is recognised by a value that changes, or by a new file.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.faults import FileFault, Reason
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
        """Take the values of a complete reading; zeros alone are odd and ignored."""
        if values.any():
            self._last[file] = values.copy()

    def continued(self, file: MetricsFile, values: NDArray[np.float64]) -> bool:
        """Return whether a retired process's file has other values than at the last reading.

        Zeros alone are an odd reading, or a process that has not counted yet.

        Args:
            file: the file.
            values: float64, as just read.
        """
        last = self._last.get(file)
        if last is None or not self.owns(file) or not values.any():
            return False
        return last.size != values.size or last.tobytes() != values.tobytes()

    def forget_values(self, file: MetricsFile) -> None:
        """Forget the values of a file whose content is forgotten."""
        self._last.pop(file, None)

    def forget_missing(self, processes: Set[str], paths: Collection[str]) -> None:
        """Forget the processes without files, and the files that are removed.

        Args:
            processes: the processes that have files.
            paths: the paths of all files.
        """
        self.names &= processes
        for path in self._not_removed.keys() - set(paths):
            del self._not_removed[path]

    def end_retirement(self, processes: Set[str]) -> Set[str]:
        """Return which of some processes were retired; they no longer are."""
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
            cannot be removed: `faults` has it until `to_remove` returns it for the next try.
        """
        try:
            return file.unlink()
        except FileFault as fault:
            self._not_removed[file.path] = file, fault
            return None

    def to_remove(self) -> list[MetricsFile]:
        """Take a few files that could not be removed, of processes whose pids are free."""
        found = [file for file, _ in self._not_removed.values() if not _may_live(file.name.process)]
        chosen = list(islice(found, _REMOVED_AT_ONCE))
        for file in chosen:
            del self._not_removed[file.path]
        return chosen


def _may_live(process: str) -> bool:
    return process.isdecimal() and Path("/proc", process).exists()
