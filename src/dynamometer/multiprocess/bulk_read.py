"""The values of all files, read into one array.

The used parts of the files are read in batches into one buffer, which stays in the processor's
cache, and numpy gathers the wanted words. The cost is one system call per file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess import file_content
from dynamometer.multiprocess.cells import Cells, Kind
from dynamometer.multiprocess.faults import FileFault, from_os_error
from dynamometer.multiprocess.file_format import WORD_BYTES
from dynamometer.multiprocess.metrics_file import MetricsFile
from dynamometer.process.descriptors import CLOSED

BATCH_WORDS: Final = 64 * 1024
_PAGE_BYTES: Final = 4096
# A copy is five times slower if its target is 8 to 24 bytes behind its source, modulo a page
# (measured on AMD Zen). Sources begin at a page, so each part of the buffer begins at a cache line.
_LINE_WORDS: Final = 8
_Scalar = TypeVar("_Scalar", bound=np.generic)


class UnreadableFilesError(Exception):
    """Files could not be read up to their known end; `faults` has their faults."""

    def __init__(self, faults: Mapping[MetricsFile, FileFault]) -> None:
        super().__init__(", ".join(file.path for file in faults))
        self.faults = faults


class _Part(NamedTuple):
    """A part of a file, and the part of the buffer that it is read into."""

    descriptor: int
    views: tuple[memoryview]
    offset: int
    length: int
    file: MetricsFile


class _Batch(NamedTuple):
    """The parts of files that are in the buffer at the same time.

    Attributes:
        parts: the parts of files.
        value_words: int64, the places of values in the buffer.
        values: the slice of the array of all values that receives these values.
        other_words: int64, the places of marks and timestamps in the buffer.
        others: the slice of the array of all marks and timestamps that receives these words.
    """

    parts: list[_Part]
    value_words: NDArray[np.int64]
    values: slice
    other_words: NDArray[np.int64]
    others: slice


class BulkRead:
    """Reads a fixed set of files again and again; for other or longer files, create another.

    Attributes:
        files: the files that have entries, in the order in which their values are added up.
        cells: int32, shape (n,): the cell of each value.
        bits: int64, shape (n,): the bits of the values as last read.
    """

    def __init__(self, files: Sequence[MetricsFile], cells: Cells) -> None:
        """Prepare the buffer and the places to read.

        Args:
            files: the files.
            cells: the cells of their values.
        """
        self.files = [file for file in files if file.content.used]
        self.cells: NDArray[np.int32] = _joined([file.cells for file in self.files], np.int32)
        self.bits: NDArray[np.int64] = np.zeros(self.cells.size, np.int64)
        self._last_bits = np.zeros_like(self.bits)
        stamped = cells.kind[self.cells] == Kind.RECENT
        self._stamped = np.flatnonzero(stamped)
        self._buffer = _aligned_words(
            min(BATCH_WORDS, sum(_padded(_words(file)) for file in self.files))
        )
        plan = _Plan(self._buffer)
        self._values_of: dict[MetricsFile, slice] = {}
        self._ends = np.cumsum([file.cells.size for file in self.files])
        begin = 0
        for file in self.files:
            end = begin + file.cells.size
            plan.add(file, stamped[begin:end])
            self._values_of[file] = slice(begin, end)
            begin = end
        self._batches, is_mark = plan.finish()
        self._mark_places = np.flatnonzero(is_mark)
        self._timestamp_places = np.flatnonzero(~is_mark)
        mark_counts = [file.content.marks.size for file in self.files]
        self._file_of_mark = np.repeat(np.arange(len(self.files)), mark_counts)
        self._mark_words = _joined([file.content.mark_words for file in self.files], np.int64)
        self._others = np.zeros(is_mark.size, np.int64)
        self._last_others = np.zeros_like(self._others)
        self._was_read = False
        self._compared = False  # whether there is an earlier reading to compare with
        self._others_changed = True
        self._found_stale = False
        self._rewritten: set[MetricsFile] = set()  # closed files whose keys differ

    @property
    def values(self) -> NDArray[np.float64]:
        """The values as last read."""
        return self.bits.view(np.float64)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """The timestamp of each value whose cell needs one (mostrecent), else 0; seconds."""
        timestamps = np.zeros(self.bits.size)
        timestamps[self._stamped] = self._others[self._timestamp_places].view(np.float64)
        return timestamps

    def read(self) -> bool:
        """Read all files; return whether any word differs from the last reading.

        Raises:
            UnreadableFilesError: Files are missing, or shorter than at the last reading.
        """
        self.bits, self._last_bits = self._last_bits, self.bits
        self._others, self._last_others = self._last_others, self._others
        buffer, bits, others = self._buffer, self.bits, self._others
        faults: dict[MetricsFile, FileFault] = {}
        self._rewritten.clear()
        for batch in self._batches:
            for descriptor, views, offset, length, file in batch.parts:
                try:
                    if descriptor == CLOSED:
                        read_bytes = self._read_closed(file, views, offset)
                    else:
                        read_bytes = os.preadv(descriptor, views, offset)
                    if read_bytes != length:
                        faults[file] = file_content.too_short()
                except FileFault as fault:
                    faults[file] = fault
                except OSError as error:
                    faults[file] = from_os_error(error)
            np.take(buffer, batch.value_words, out=bits[batch.values], mode="clip")
            np.take(buffer, batch.other_words, out=others[batch.others], mode="clip")
        if faults:
            raise UnreadableFilesError(faults)
        self._compared, self._was_read = self._was_read, True
        self._others_changed = not (self._compared and _equal(others, self._last_others))
        return self._others_changed or not _equal(bits, self._last_bits)

    def changed_files(self) -> list[MetricsFile]:
        """Return the files with a value that differs from the last reading; at first, all files."""
        if not self._compared:
            return list(self.files)
        places = np.flatnonzero(self.bits != self._last_bits)
        indices = np.unique(np.searchsorted(self._ends, places, side="right"))
        return [self.files[index] for index in indices.tolist()]

    def stale_files(self) -> list[MetricsFile]:
        """Return the files that are longer than their known content, or have another content."""
        if not (self._others_changed or self._found_stale or self._rewritten):
            return []
        different = self._others[self._mark_places] != self._mark_words
        stale = [self.files[index] for index in np.unique(self._file_of_mark[different]).tolist()]
        stale += self._rewritten.difference(stale)
        self._found_stale = bool(stale)
        return stale

    def values_of(self, file: MetricsFile) -> NDArray[np.float64]:
        """Return a file's values as last read, in the order of its cells."""
        return self.values[self._values_of[file]]

    def _read_closed(self, file: MetricsFile, views: tuple[memoryview], offset: int) -> int:
        with file.opened() as descriptor:
            if not file.has_known_keys(descriptor):
                self._rewritten.add(file)
            return os.preadv(descriptor, views, offset)


class _Plan:
    """Packs files into batches; a file larger than the buffer is read in several parts."""

    def __init__(self, buffer: NDArray[np.int64]) -> None:
        self._view = memoryview(buffer.data).cast("B")
        self._batches: list[_Batch] = []
        self._parts: list[_Part] = []
        self._value_words: list[NDArray[np.int64]] = []
        self._other_words: list[NDArray[np.int64]] = []
        self._used_words = 0
        self._value_count = 0
        self._other_count = 0
        self._is_mark: list[NDArray[np.bool_]] = []

    def add(self, file: MetricsFile, stamped: NDArray[np.bool_]) -> None:
        """Add the parts of a file.

        Args:
            file: the file.
            stamped: bool, for each of its values: whether its timestamp is needed.
        """
        words = _words(file)
        stamps = file.value_places[stamped] + 1
        for begin in range(0, words, BATCH_WORDS):
            end = min(begin + BATCH_WORDS, words)
            if self._used_words + end - begin > BATCH_WORDS:
                self._flush()
            marks = _within(file.content.marks, begin, end)
            others = np.concatenate([marks, _within(stamps, begin, end)])
            self._is_mark.append(np.arange(others.size) < marks.size)
            shift = self._used_words - begin
            self._value_words.append(_within(file.value_places, begin, end) + shift)
            self._other_words.append(others + shift)
            self._add_part(file, begin, end)

    def finish(self) -> tuple[list[_Batch], NDArray[np.bool_]]:
        """Return all batches and, for each of the other words, whether it is a mark."""
        self._flush()
        return self._batches, _joined(self._is_mark, np.bool_)

    def _add_part(self, file: MetricsFile, begin: int, end: int) -> None:
        size = (end - begin) * WORD_BYTES
        start = self._used_words * WORD_BYTES
        view = self._view[start : start + size]
        self._parts.append(_Part(file.descriptor, (view,), begin * WORD_BYTES, size, file))
        self._used_words += _padded(end - begin)

    def _flush(self) -> None:
        if not self._parts:
            return
        values = _joined(self._value_words, np.int64)
        others = _joined(self._other_words, np.int64)
        self._batches.append(
            _Batch(
                self._parts,
                values,
                slice(self._value_count, self._value_count + values.size),
                others,
                slice(self._other_count, self._other_count + others.size),
            )
        )
        self._value_count += values.size
        self._other_count += others.size
        self._parts, self._value_words, self._other_words, self._used_words = [], [], [], 0


def _aligned_words(count: int) -> NDArray[np.int64]:
    """Return a buffer that begins at a page of memory."""
    raw = np.empty(count * WORD_BYTES + _PAGE_BYTES, np.uint8)
    begin = -raw.ctypes.data % _PAGE_BYTES
    return raw[begin : begin + count * WORD_BYTES].view(np.int64)


def _words(file: MetricsFile) -> int:
    return file.content.used // WORD_BYTES


def _padded(words: int) -> int:
    return -(-words // _LINE_WORDS) * _LINE_WORDS


def _within(words: NDArray[np.int64], begin: int, end: int) -> NDArray[np.int64]:
    first, last = np.searchsorted(words, [begin, end]).tolist()
    return words[first:last]


def _joined(arrays: Sequence[NDArray[_Scalar]], dtype: type[_Scalar]) -> NDArray[_Scalar]:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _equal(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return not (one != other).any()
