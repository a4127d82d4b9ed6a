"""Files of ended processes that are not ours to remove.

What they had counted stays in the totals, and they are read no more. A process that gets an
old pid again continues the old files, so a few are looked at in each reading: when the
content of one has changed, those of its process are read again, and what they had counted
before is not counted twice. A new file of such a process says at once that it writes again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess import entries
from dynamometer.multiprocess.entries import HEADER_BYTES, WORD_BYTES, parse_key
from dynamometer.multiprocess.faults import FileFault
from dynamometer.multiprocess.file import MultiprocessFile, checksum

# Some 20 µs each; more files than these take several readings in turn.
_LOOKED_AT: Final = 16
_double = struct.Struct("=d").unpack_from


@dataclass(frozen=True, slots=True)
class RetiredFile:
    """A file as it was when its process had ended.

    Attributes:
        file: it, closed, as if nothing had been read.
        fingerprint: of its content; None where it could not be read.
        used: how many bytes of it were known.
        keys: the checksum of the keys in them.
        words: int64, where in the file the values are that were not zero.
        values: float64, those values.
    """

    file: MultiprocessFile
    fingerprint: int | None
    used: int
    keys: int
    words: NDArray[np.int64]
    values: NDArray[np.float64]

    def baseline(self) -> NDArray[np.float64] | None:
        """What each value counts from, once the file has been read again.

        None, for zero, where it is another file: an inode's number is used again.
        """
        file = self.file
        try:
            if not self._goes_on():
                return None
        except FileFault:
            return None
        baseline = np.zeros(file.values.size)
        places = np.searchsorted(file.values, self.words)
        places = places[places < file.values.size]
        same = file.values[places] == self.words[: places.size]
        baseline[places[same]] = self.values[: places.size][same]
        return baseline

    def _goes_on(self) -> bool:
        """Whether the file has the same keys in the same places, and no counter has fallen."""
        data = self.file.known_part(self.used)
        found = entries.split(data, HEADER_BYTES)
        if checksum(found) != self.keys:
            return False
        key_at = {entry.value: entry.key for entry in found}
        for word, counted in zip(self.words.tolist(), self.values.tolist(), strict=True):
            (value,) = _double(data, word * WORD_BYTES - HEADER_BYTES)
            # Of what is counted, sums alone may fall: negative amounts can be observed.
            if value < counted and not parse_key(key_at[word]).sample.endswith("_sum"):
                return False
        return True


class RetiredFiles:
    """The retired files of a directory, by path."""

    def __init__(self) -> None:
        self._files: dict[str, RetiredFile] = {}
        self._next: list[str] = []

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def add(self, file: MultiprocessFile, values: NDArray[np.float64]) -> None:
        """Retire a file.

        Args:
            file: it.
            values: its values, all that are counted already; shape of `file.values`.
        """
        counted = np.flatnonzero(values)
        words = file.values[counted]
        retired = RetiredFile(
            file, _fingerprint(file), file.used, file.keys, words, values[counted]
        )
        file.close()
        file.forget()
        self._files[file.path] = retired

    def keep(self, files: Mapping[str, int]) -> None:
        """Forget those that are no longer there, or have been replaced.

        Args:
            files: the inode number of each file that is there, by path.
        """
        self._files = {
            path: retired
            for path, retired in self._files.items()
            if files.get(path) == retired.file.inode
        }

    def pop_awakened(self, begun: Iterable[str]) -> list[RetiredFile]:
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
        return [
            self._files.pop(path)
            for path, retired in list(self._files.items())
            if retired.file.name.process in awakened
        ]


def _fingerprint(file: MultiprocessFile) -> int | None:
    try:
        return file.fingerprint(whole=True)
    except FileFault:
        return None
