"""Files of ended processes: removed where they are ours, else read no more.

What they had counted stays in the totals. A process that gets an old pid again continues the
old files, so a few are looked at in each reading: when the content of one has changed, those
of its process are read again, and what they had counted before is not counted twice. A new
file of such a process says at once that it writes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.baseline import RetiredFile
from dynamometer.multiprocess.faults import FileFault, Reason
from dynamometer.multiprocess.file import MultiprocessFile
from dynamometer.multiprocess.files import unlink

# Some 20 µs each; more files than these take several readings in turn.
_LOOKED_AT: Final = 16


class RetiredFiles:
    """The retired files of a directory, by path."""

    def __init__(self) -> None:
        self._files: dict[str, RetiredFile] = {}
        self._next: list[str] = []
        self._awakened: dict[str, RetiredFile] = {}
        self._not_removed: dict[str, FileFault] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    @property
    def faults(self) -> list[tuple[str, Reason, str]]:
        """The files that should have been removed and are there."""
        return [(path, fault.reason, str(fault)) for path, fault in self._not_removed.items()]

    def add(self, file: MultiprocessFile, values: NDArray[np.float64], *, remove: bool) -> None:
        """Retire a file.

        Args:
            file: it.
            values: its values, all that are counted already; shape of `file.values`.
            remove: unlink it; where that cannot be done, it is retired.
        """
        before = self._awakened.pop(file.path, None)
        file.close()
        if remove and self._remove(file):
            return
        fingerprint = _fingerprint(file)
        if before is not None and before.file is file and not file.used:
            # Bad when its process ended: what it had counted in an earlier life is still known.
            retired = replace(before, fingerprint=fingerprint)
        else:
            counted = np.flatnonzero(values)
            words = file.values[counted]
            retired = RetiredFile(file, fingerprint, file.used, file.keys, words, values[counted])
        file.forget()
        self._files[file.path] = retired

    def keep(self, files: Mapping[str, int]) -> None:
        """Forget those that are no longer there, or have been replaced.

        Args:
            files: the inode number of each file that is there, by path.
        """
        self._files = _still_there(self._files, files)
        self._awakened = _still_there(self._awakened, files)
        for path in self._not_removed.keys() - self._files.keys():
            del self._not_removed[path]

    def remove_again(self) -> None:
        """Try to unlink the next few that could not be.

        Not those that somebody may have opened since: a process that goes on with a file
        changes nothing in it until it counts.
        """
        for path in list(self._not_removed)[:_LOOKED_AT]:
            fault = self._not_removed.pop(path)
            retired = self._files[path]
            if _may_be_written(retired):
                self._not_removed[path] = fault
            elif self._remove(retired.file):
                del self._files[path]

    def awaken(self, begun: Iterable[str]) -> list[MultiprocessFile]:
        """Look at the next few: the files of processes that write again, retired no more.

        Args:
            begun: processes that have new files, and so write again.
        """
        awakened = set(begun)
        for _ in range(min(_LOOKED_AT, len(self._files))):
            if not self._next:
                self._next = list(self._files)
            retired = self._files.get(self._next.pop())
            if retired is not None and _fingerprint(retired.file) != retired.fingerprint:
                awakened.add(retired.file.name.process)
        if not awakened:
            return []
        found = [
            self._files.pop(path)
            for path, retired in list(self._files.items())
            if retired.file.name.process in awakened
        ]
        for retired in found:
            self._awakened[retired.file.path] = retired
            self._not_removed.pop(retired.file.path, None)
        return [retired.file for retired in found]

    def baseline(self, file: MultiprocessFile) -> NDArray[np.float64] | None:
        """What each value of a file counts from that was read from its beginning.

        It is asked for whenever that happens: a file may turn bad, and good again.

        Args:
            file: it.

        Returns:
            None, for zero, where it is no awakened one, or a gauge's, which has no past.

        Raises:
            FileFault: the file cannot be read.
        """
        retired = self._awakened.get(file.path)
        if retired is None or retired.file is not file or file.name.type == "gauge":
            return None
        baseline = retired.baseline()
        if baseline is None:
            self.forget(file)
        return baseline

    def forget(self, file: MultiprocessFile) -> None:
        """A file's content is another's: it counts from zero."""
        self._awakened.pop(file.path, None)

    def _remove(self, file: MultiprocessFile) -> bool:
        try:
            unlink(file)
        except FileFault as fault:
            self._not_removed[file.path] = fault
            return False
        return True


def _still_there(
    retired: Mapping[str, RetiredFile], files: Mapping[str, int]
) -> dict[str, RetiredFile]:
    return {path: one for path, one in retired.items() if files.get(path) == one.file.inode}


def _may_be_written(retired: RetiredFile) -> bool:
    process = retired.file.name.process
    if process.isdecimal() and Path("/proc", process).exists():
        return True
    return _fingerprint(retired.file) != retired.fingerprint


def _fingerprint(file: MultiprocessFile) -> int | None:
    try:
        return file.fingerprint(whole=True)
    except FileFault:
        return None
