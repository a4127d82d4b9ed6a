"""What the values of a file count from, where some of what they say is counted already.

A retired file is one whose process had ended: its values are in the totals for good. If it
is read again, because a process goes on with it, they count from where they were.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess import entries
from dynamometer.multiprocess.entries import HEADER_BYTES, WORD_BYTES, parse_key
from dynamometer.multiprocess.faults import FileFault, Reason
from dynamometer.multiprocess.file import MultiprocessFile, checksum

# The file could be read, and is not what it was.
_ANOTHER: Final = frozenset({Reason.TRUNCATED, Reason.CORRUPT, Reason.KEY})
_double = struct.Struct("=d").unpack_from


def less(values: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """What has been counted since a baseline.

    An infinity that was there already adds nothing: taken from itself it would be NaN.

    Args:
        values: shape (n,).
        baseline: shape (n,).
    """
    with np.errstate(invalid="ignore"):
        since: NDArray[np.float64] = values - baseline
    endless = np.flatnonzero(~np.isfinite(baseline))
    now = values[endless]
    since[endless] = np.where(now == baseline[endless], 0.0, now)
    return since


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

        Raises:
            FileFault: the file cannot be read.
        """
        file = self.file
        try:
            if not self._goes_on():
                return None
        except FileFault as fault:
            if fault.reason in _ANOTHER:
                return None
            raise
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
