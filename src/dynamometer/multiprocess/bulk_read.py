"""All values of all files, gathered into one array.

The used parts of the files are read, a batch at a time, into one buffer that stays in the
processor's cache, and numpy takes the wanted words out of it. A file costs one system call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess.cells import Cells, Kind
from dynamometer.multiprocess.faults import FileFault, Reason, of_os_error
from dynamometer.multiprocess.file_format import WORD_BYTES
from dynamometer.multiprocess.kept_counts import since
from dynamometer.multiprocess.metrics_file import MultiprocessFile
from dynamometer.process.descriptors import CLOSED

BATCH_WORDS: Final = 64 * 1024
_PAGE_BYTES: Final = 4096
# The kernel copies five times slower to an address 8 to 24 bytes behind its source's, modulo
# a page (measured on AMD Zen); sources begin at pages, so parts begin at cache lines.
_LINE_WORDS: Final = 8
_Scalar = TypeVar("_Scalar", bound=np.generic)


class UnreadableFilesError(Exception):
    """Files could not be read to where they were known: all of one reading, and why."""

    def __init__(self, faults: Mapping[MultiprocessFile, FileFault]) -> None:
        super().__init__(", ".join(file.path for file in faults))
        self.faults = faults


class _Part(NamedTuple):
    """A stretch of a file, and the stretch of the buffer that it is read into."""

    descriptor: int
    views: tuple[memoryview]
    offset: int
    length: int
    file: MultiprocessFile


class _Batch(NamedTuple):
    """What is in the buffer at one time.

    Attributes:
        parts: the stretches of files.
        value_words: int64, where in the buffer values are.
        values: which stretch of all values they are.
        other_words: int64, where in the buffer marks and timestamps are.
        others: which stretch of all marks and timestamps they are.
    """

    parts: list[_Part]
    value_words: NDArray[np.int64]
    values: slice
    other_words: NDArray[np.int64]
    others: slice


class BulkRead:
    """How a set of files is read: made anew when one of them came, grew or went.

    Attributes:
        files: those that hold something, in the order in which their values are added up.
        cells: int32, shape (n,): the cell of each value.
        bits: int64, shape (n,): the values' bits as last read.
    """

    def __init__(self, files: Sequence[MultiprocessFile], cells: Cells) -> None:
        """A plan; nothing is read yet."""
        self.files = [file for file in files if file.used]
        self.cells: NDArray[np.int32] = _joined([file.cells for file in self.files], np.int32)
        self.bits: NDArray[np.int64] = np.zeros(self.cells.size, np.int64)
        self._last_bits = np.zeros_like(self.bits)
        stamped = cells.kind[self.cells] == Kind.RECENT
        self._stamped = np.flatnonzero(stamped)
        self._buffer = _aligned_words(
            min(BATCH_WORDS, sum(_padded(file.used // WORD_BYTES) for file in self.files))
        )
        plan = _Plan(self._buffer)
        self._values_of: dict[MultiprocessFile, slice] = {}
        self._ends = np.cumsum([file.cells.size for file in self.files])
        begin = 0
        for file in self.files:
            end = begin + file.cells.size
            plan.add(file, stamped[begin:end])
            self._values_of[file] = slice(begin, end)
            begin = end
        self._batches, is_mark = plan.finished()
        self._mark_places = np.flatnonzero(is_mark)
        self._timestamp_places = np.flatnonzero(~is_mark)
        owners = np.repeat(np.arange(len(self.files)), [file.marks.size for file in self.files])
        self._mark_owners = owners
        self._marked = _joined([file.marked for file in self.files], np.int64)
        self._others = np.zeros(is_mark.size, np.int64)
        self._last_others = np.zeros_like(self._others)
        self._baseline = self._joined_baselines()
        self._held = np.repeat(
            np.array([file.held for file in self.files], np.bool_),
            [file.cells.size for file in self.files],
        )
        self._begun = self._compared = False
        self._others_changed = True
        self._found_stale = False
        self._rewritten: set[MultiprocessFile] = set()

    @property
    def values(self) -> NDArray[np.float64]:
        """The values as last read, less what they count from."""
        values = self.bits.view(np.float64)
        if self._baseline is None:
            return values
        counted = since(values, self._baseline)
        counted[self._held & (counted < 0)] = 0.0
        return counted

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """The timestamp of each value whose cell needs one (mostrecent), else 0; seconds."""
        timestamps = np.zeros(self.bits.size)
        timestamps[self._stamped] = self._others[self._timestamp_places].view(np.float64)
        return timestamps

    def read(self) -> bool:
        """Read everything; whether any word is another than the last time.

        Raises:
            UnreadableFilesError: files are shorter than they were, or gone.
        """
        self.bits, self._last_bits = self._last_bits, self.bits
        self._others, self._last_others = self._last_others, self._others
        buffer, bits, others = self._buffer, self.bits, self._others
        faults: dict[MultiprocessFile, FileFault] = {}
        self._rewritten.clear()
        for batch in self._batches:
            for descriptor, views, offset, length, file in batch.parts:
                try:
                    if descriptor == CLOSED:
                        read = self._read_closed(file, views, offset)
                    else:
                        read = os.preadv(descriptor, views, offset)
                    if read != length:
                        faults[file] = _short()
                except FileFault as fault:
                    faults[file] = fault
                except OSError as error:
                    faults[file] = of_os_error(error)
            np.take(buffer, batch.value_words, out=bits[batch.values], mode="clip")
            np.take(buffer, batch.other_words, out=others[batch.others], mode="clip")
        if faults:
            raise UnreadableFilesError(faults)
        self._compared = begun = self._begun
        self._begun = True
        self._others_changed = not (begun and _equal(others, self._last_others))
        return self._others_changed or not _equal(bits, self._last_bits)

    def changed_files(self) -> list[MultiprocessFile]:
        """The files of which a value changed since the reading before; all after the first one."""
        if not self._compared:
            return list(self.files)
        places = np.flatnonzero(self.bits != self._last_bits)
        owners = np.unique(np.searchsorted(self._ends, places, side="right"))
        return [self.files[owner] for owner in owners.tolist()]

    def stale_files(self) -> list[MultiprocessFile]:
        """The files that are not what they were: longer, or with another's content."""
        if not (self._others_changed or self._found_stale or self._rewritten):
            return []
        different = self._others[self._mark_places] != self._marked
        stale = [self.files[owner] for owner in np.unique(self._mark_owners[different]).tolist()]
        stale += self._rewritten.difference(stale)
        self._found_stale = bool(stale)
        return stale

    def values_of(self, file: MultiprocessFile) -> NDArray[np.float64]:
        """A file's values as last read, in the order of its cells; not less its baseline."""
        return self.bits[self._values_of[file]].view(np.float64)

    def _read_closed(self, file: MultiprocessFile, views: tuple[memoryview], offset: int) -> int:
        with file.opened() as descriptor:
            if not file.same_keys(descriptor):
                self._rewritten.add(file)
            return os.preadv(descriptor, views, offset)

    def _joined_baselines(self) -> NDArray[np.float64] | None:
        if all(file.baseline is None for file in self.files):
            return None
        return _joined(
            [
                np.zeros(file.cells.size) if file.baseline is None else file.baseline
                for file in self.files
            ],
            np.float64,
        )


class _Plan:
    """Packs files into batches; a file larger than the buffer is read in several parts."""

    def __init__(self, buffer: NDArray[np.int64]) -> None:
        self._view = memoryview(buffer.data).cast("B")
        self._batches: list[_Batch] = []
        self._parts: list[_Part] = []
        self._value_words: list[NDArray[np.int64]] = []
        self._other_words: list[NDArray[np.int64]] = []
        self._full = 0
        self._values = 0
        self._others = 0
        self._is_mark: list[NDArray[np.bool_]] = []

    def add(self, file: MultiprocessFile, stamped: NDArray[np.bool_]) -> None:
        """Read a file too.

        Args:
            file: the file.
            stamped: which of its values need their timestamps.
        """
        words = file.used // WORD_BYTES
        stamps = file.values[stamped] + 1
        for begin in range(0, words, BATCH_WORDS):
            end = min(begin + BATCH_WORDS, words)
            if self._full + end - begin > BATCH_WORDS:
                self._flush()
            marks = _within(file.marks, begin, end)
            others = np.concatenate([marks, _within(stamps, begin, end)])
            self._is_mark.append(np.arange(others.size) < marks.size)
            shift = self._full - begin
            self._value_words.append(_within(file.values, begin, end) + shift)
            self._other_words.append(others + shift)
            self._add_part(file, begin, end)

    def finished(self) -> tuple[list[_Batch], NDArray[np.bool_]]:
        """All batches, and which of the other words are marks."""
        self._flush()
        return self._batches, _joined(self._is_mark, np.bool_)

    def _add_part(self, file: MultiprocessFile, begin: int, end: int) -> None:
        size = (end - begin) * WORD_BYTES
        start = self._full * WORD_BYTES
        view = self._view[start : start + size]
        self._parts.append(_Part(file.descriptor, (view,), begin * WORD_BYTES, size, file))
        self._full += _padded(end - begin)

    def _flush(self) -> None:
        if not self._parts:
            return
        values = _joined(self._value_words, np.int64)
        others = _joined(self._other_words, np.int64)
        self._batches.append(
            _Batch(
                self._parts,
                values,
                slice(self._values, self._values + values.size),
                others,
                slice(self._others, self._others + others.size),
            )
        )
        self._values += values.size
        self._others += others.size
        self._parts, self._value_words, self._other_words, self._full = [], [], [], 0


def _aligned_words(count: int) -> NDArray[np.int64]:
    """A buffer that begins at a page."""
    raw = np.empty(count * WORD_BYTES + _PAGE_BYTES, np.uint8)
    begin = -raw.ctypes.data % _PAGE_BYTES
    return raw[begin : begin + count * WORD_BYTES].view(np.int64)


def _padded(words: int) -> int:
    return -(-words // _LINE_WORDS) * _LINE_WORDS


def _within(words: NDArray[np.int64], begin: int, end: int) -> NDArray[np.int64]:
    first, last = np.searchsorted(words, [begin, end]).tolist()
    return words[first:last]


def _joined(arrays: Sequence[NDArray[_Scalar]], dtype: type[_Scalar]) -> NDArray[_Scalar]:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _equal(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return not (one != other).any()


def _short() -> FileFault:
    return FileFault(Reason.TRUNCATED, "shorter than it was")
