"""One multiprocess file: kept open where there is room, read and never mapped.

A mapped file that is truncated kills its reader (SIGBUS); a read that comes up short says so.

A file whose content was replaced is known by its header and its last key, and by all its keys
where it is not held open and its status has changed. Not noticed: other keys before the same last
one, written into a file that is held open; summing all keys costs more than the reading.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from dynamometer.multiprocess import file_format
from dynamometer.multiprocess.cells import HIDDEN
from dynamometer.multiprocess.faults import FileFault, Reason, of_os_error
from dynamometer.multiprocess.file_format import HEADER_BYTES, WORD_BYTES, Entry, FileName
from dynamometer.process.descriptors import CLOSED, Descriptor

# A FIFO must not block the reader, nor a terminal become its own.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_MARKS_OF_ENTRIES: Final = 2
_PIECE_BYTES: Final = 1 << 20
_END_BYTES: Final = 1 << 16


class Past(NamedTuple):
    """What a file had counted before it was forgotten.

    Attributes:
        cells: int32, shape (n,).
        counted: float64, shape (m,), m at most n: the values that are counted.
        baseline: float64, shape (n,): what they count from; None for zero.
        held: see `MultiprocessFile`.
        known: what a former file of the path had counted, by cell.
    """

    cells: NDArray[np.int32]
    counted: NDArray[np.float64]
    baseline: NDArray[np.float64] | None
    held: bool
    known: dict[int, float]


class MultiprocessFile:
    """A file and what has been read of it.

    Attributes:
        path: where it is.
        name: the parts of its name.
        inode: its number in the directory.
        used: how many bytes of it are known; 0 before anything is.
        values: int64, where the values are that have a cell, in words of eight bytes.
        cells: int32, the cell of each.
        keys: a checksum of the known keys, in their order.
        counted: float64, the first values as the last complete reading had them, where the file
            is kept or hidden; else None.
        kept: whether what it has counted stays in the totals when it goes.
        hidden: whether it holds gauges of a process that has ended: they are read, not shown.
        baseline: float64, what each value counts from; None for zero.
        held: whether values below their baseline count nothing, instead of less than nothing.
        seen: whether a complete reading had the file.
        suspected: whether the last reading had values of another process.
        marks: int64, words that change when the file is not the one that was read: the
            header, and the whole key of the last entry.
        marked: int64, what those words were.
        status: its change time and size when its keys were last known to be the same.
        left_out: the series that have no place on the page: how many, and why, by reason.
        waiting: whether its header or its last key was half written.
    """

    def __init__(self, path: str, name: FileName, inode: int) -> None:
        """Nothing is opened or read yet."""
        self.path = path
        self.name = name
        self.inode = inode
        self._held: Descriptor | None = None
        self.left_out: dict[Reason, tuple[int, str]] = {}
        self.baseline: NDArray[np.float64] | None = None
        self.waiting = False
        self._half_written = 0
        self.cells: NDArray[np.int32] = np.empty(0, np.int32)
        self.counted: NDArray[np.float64] | None = None
        self.held = False
        self.kept = False
        self.hidden = False
        self.seen = False
        self.suspected = False
        self._known: dict[int, float] = {}
        self._past: Past | None = None
        self.forget()

    def forget(self) -> None:
        """As if nothing of it had been read; `take_past` has what was counted."""
        self.stash()
        self.used = 0
        self.keys = 0
        self.status = (0, 0)
        self.values: NDArray[np.int64] = np.empty(0, np.int64)
        self.cells = np.empty(0, np.int32)
        self.marks: NDArray[np.int64] = np.empty(0, np.int64)
        self.marked: NDArray[np.int64] = np.empty(0, np.int64)
        self.left_out.clear()

    def stash(self) -> None:
        """Put by what was counted, for `take_past`, and count from zero."""
        if not self.hidden and (self.counted is not None or self._known):
            counted = np.empty(0) if self.counted is None else self.counted
            self._past = Past(self.cells, counted, self.baseline, self.held, self._known)
        self.counted = None
        self.begin_again()

    def take_past(self) -> Past | None:
        """What was counted before the file was forgotten, once; None for nothing."""
        past, self._past = self._past, None
        return past

    def begin_again(self) -> None:
        """Count from zero."""
        self.baseline, self.held, self._known = None, False, {}
        self.suspected = False

    def resume(self, known: dict[int, float]) -> None:
        """Count from what a file of the path had counted, and nothing while a value is below.

        Args:
            known: that, by cell.
        """
        self.kept = True
        self._known = known
        self.baseline = self._known_of(self.cells.tolist())
        self.held = True

    def _known_of(self, cells: list[int]) -> NDArray[np.float64]:
        return np.array([self._known.get(cell, 0.0) for cell in cells], np.float64)

    def hide(self) -> None:
        """Show none of the values that have cells, nor those that get one."""
        self.hidden = True
        self.cells = np.full_like(self.cells, HIDDEN)

    def show(self) -> None:
        """Forget a hidden file, so that it is read and shown like others."""
        self.forget()
        self.hidden = False

    def changed(self, now: NDArray[np.float64]) -> bool:
        """Return whether values are others than those of the last complete reading.

        Zeros alone do not count: they are an odd reading, or a process that has counted nothing.

        Args:
            now: float64, as just read.
        """
        before = self.counted
        if before is None or not now.any():
            return False
        return before.size != now.size or before.tobytes() != now.tobytes()

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Its descriptor: the one kept, or one for the time of the context.

        Raises:
            FileFault: it cannot be opened, or is no regular file.
        """
        if self.descriptor != CLOSED:
            yield self.descriptor
            return
        descriptor = _open(self.path)
        try:
            yield descriptor.number
        finally:
            descriptor.close()

    def keep_open(self) -> None:
        """Open it for good.

        Raises:
            FileFault: as `opened`.
        """
        if self.descriptor == CLOSED:
            self._held = _open(self.path)

    @property
    def descriptor(self) -> int:
        """The descriptor that is held open, else `CLOSED`."""
        return CLOSED if self._held is None else self._held.number

    def close(self) -> None:
        """Close the descriptor that is held open."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def replaced(self, inode: int) -> bool:
        """Whether the directory has another file in its place now.

        Args:
            inode: the number in the directory.
        """
        if inode != self.inode:
            return True
        # A number is used again as soon as nobody holds the file: then the marks differ.
        return self.descriptor != CLOSED and os.fstat(self.descriptor).st_nlink == 0

    def new_entries(self) -> list[Entry]:
        """The entries behind those that are known.

        A key that is half written when it is read is left for the next call.

        Raises:
            FileFault: the file cannot be read, or is none.
        """
        with self.opened() as descriptor:
            try:
                header = os.pread(descriptor, HEADER_BYTES, 0)
                status = os.fstat(descriptor)
                used = file_format.used_bytes(header, status.st_size)
                if (
                    used < self.used
                    or not self._same_last_entry(descriptor)
                    or not self.same_keys(descriptor)
                ):
                    self.forget()
                self.status = status.st_ctime_ns, status.st_size
                begin = self.used or HEADER_BYTES
                found = _read_entries(descriptor, begin, used)
                half_written = bool(found) and file_format.half_written(found[-1].key)
                if half_written:
                    used = self._wait_for(found.pop())
                self.waiting = half_written or not used
                self._mark(descriptor, header, used, found)
            except OSError as error:
                raise of_os_error(error) from None
        return found

    def same_keys(self, descriptor: int) -> bool:
        """Whether the known keys are still there, where it is not held open; else True.

        Such a file may be another at each opening. The keys are looked at where its status has
        changed, as it does when it is made and now and then when it is written.

        Args:
            descriptor: it, opened.
        """
        if self.descriptor != CLOSED or not self.used:
            return True
        found = os.fstat(descriptor)
        status = found.st_ctime_ns, found.st_size
        if status == self.status:
            return True
        data = os.pread(descriptor, self.used - HEADER_BYTES, HEADER_BYTES)
        with suppress(FileFault):
            if checksum(file_format.split(data, HEADER_BYTES)) == self.keys:
                self.status = status
                return True
        return False

    def last_values(self) -> NDArray[np.float64]:
        """Return the values that have cells, as they are now, in their order.

        Raises:
            FileFault: The file cannot be read, or is shorter.
        """
        with self.opened() as descriptor:
            try:
                data = os.pread(descriptor, self.used, 0)
            except OSError as error:
                raise of_os_error(error) from None
        if len(data) < self.used:
            raise FileFault(Reason.TRUNCATED, "shorter than it was")
        return np.frombuffer(data, np.float64)[self.values]

    def fingerprint(self) -> int:
        """Return a checksum of the file's ends, its size and its modification time.

        Raises:
            FileFault: the file cannot be read, or is none.
        """
        with self.opened() as descriptor:
            try:
                header = os.pread(descriptor, HEADER_BYTES, 0)
                status = os.fstat(descriptor)
                used = file_format.used_bytes(header, status.st_size)
                if used <= 2 * _END_BYTES:
                    return crc32(os.pread(descriptor, used, 0))
                ends = os.pread(descriptor, _END_BYTES, 0)
                ends += os.pread(descriptor, _END_BYTES, used - _END_BYTES)
                return crc32(ends + b"%d %d" % (status.st_size, status.st_mtime_ns))
            except OSError as error:
                raise of_os_error(error) from None

    def place(self, values: list[int], cells: list[int]) -> None:
        """Take in the values that have got cells.

        Args:
            values: where they are, in words.
            cells: the cell of each.
        """
        self.values = np.concatenate([self.values, np.array(values, np.int64)])
        self.cells = np.concatenate([self.cells, np.array(cells, np.int32)])
        if self.hidden:
            self.hide()
        if self.baseline is not None:
            known = self._known_of(cells)
            self.held = self.held or bool(known.any())
            self.baseline = np.concatenate([self.baseline, known])

    def leave_out(self, reason: Reason, text: str) -> None:
        """Count a series that has no place on the page."""
        count, first = self.left_out.get(reason, (0, text))
        self.left_out[reason] = count + 1, first

    def _same_last_entry(self, descriptor: int) -> bool:
        if self.marks.size < _MARKS_OF_ENTRIES:
            return True
        last = self.marked[1:].tobytes()
        return os.pread(descriptor, len(last), int(self.marks[1]) * WORD_BYTES) == last

    def _wait_for(self, entry: Entry) -> int:
        if self._half_written == entry.begin:
            raise FileFault(Reason.KEY, f"an empty key at byte {entry.begin * WORD_BYTES}")
        self._half_written = entry.begin
        return entry.begin * WORD_BYTES

    def _mark(self, descriptor: int, header: bytes, used: int, found: list[Entry]) -> None:
        self.used = used
        self.keys = checksum(found, self.keys)
        last = self.marks[1:]
        last_words = self.marked[1:]
        if found:
            last = np.arange(found[-1].begin, found[-1].value)
            words = os.pread(descriptor, last.size * WORD_BYTES, found[-1].begin * WORD_BYTES)
            if len(words) < last.size * WORD_BYTES:
                raise FileFault(Reason.TRUNCATED, "shorter than it was")
            last_words = np.frombuffer(words, np.int64)
        self.marks = np.concatenate([[0], last]).astype(np.int64)
        self.marked = np.concatenate([np.frombuffer(header, np.int64), last_words])


def checksum(found: list[Entry], before: int = 0) -> int:
    """A checksum of the keys of entries.

    Args:
        found: the entries.
        before: the checksum of those before them.
    """
    # A zero is in no key: where one ends belongs to the sum.
    return crc32(b"".join([entry.key + b"\0" for entry in found]), before)


def _read_entries(descriptor: int, begin: int, used: int) -> list[Entry]:
    """The entries from a place on, read in pieces: what is in use may be zeros for gigabytes."""
    found: list[Entry] = []
    piece = _PIECE_BYTES
    while begin < used and not (found and not found[-1].key):
        size = min(piece, used - begin)
        data = os.pread(descriptor, size, begin)
        if len(data) < size:
            raise FileFault(Reason.TRUNCATED, f"{used} bytes in use, it says")
        part = file_format.split(data, begin, used)
        if part:
            found += part
            begin = part[-1].value * WORD_BYTES + file_format.VALUE_AND_TIMESTAMP_BYTES
        else:
            piece *= 2  # a key that is longer
    return found


def _open(path: str) -> Descriptor:
    try:
        descriptor = Descriptor(os.open(path, _FLAGS))
    except OSError as error:
        found = Path(path)
        if found.exists() and not found.is_file():
            raise FileFault(Reason.NOT_A_FILE, "no regular file") from None
        raise of_os_error(error) from None
    if not stat.S_ISREG(os.fstat(descriptor.number).st_mode):
        descriptor.close()
        raise FileFault(Reason.NOT_A_FILE, "no regular file")
    return descriptor
