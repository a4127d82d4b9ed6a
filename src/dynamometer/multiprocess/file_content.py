"""The known content of a file: the bytes in use, and the marks that show that it was replaced.

The marks are the header and the last key: content with other marks was replaced. In a file that is
not held open, all keys are compared too when the file's status has changed. In a file that is held
open they are not, because a checksum of all keys would cost more than the reading: there, other
keys before the same last key are not noticed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from dynamometer.multiprocess import file_format
from dynamometer.multiprocess.faults import FileFault, Reason, from_os_error
from dynamometer.multiprocess.file_format import HEADER_BYTES, WORD_BYTES, Entry

_Status: TypeAlias = tuple[int, int]
_PIECE_BYTES: Final = 1 << 20
_TOO_SHORT: Final = "shorter than at the last reading"


def _no_words() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """The known content of a file; a changed content is another object.

    Attributes:
        used: the number of known bytes; 0 before anything is known.
        incomplete: whether the writer has not started, or the next key is partly written.
        key_checksum: a checksum of the known keys, in their order.
        status: the file's change time and size when the keys were last verified.
        marks: int64, the places of the marks in words of eight bytes: the header, and the words
            of the last key.
        mark_words: int64, the words at these places.
    """

    used: int = 0
    incomplete: bool = False
    key_checksum: int = 0
    status: _Status = (0, 0)
    marks: NDArray[np.int64] = field(default_factory=_no_words)
    mark_words: NDArray[np.int64] = field(default_factory=_no_words)

    def has_last_key(self, descriptor: int) -> bool:
        """Return whether the file still has the last known key."""
        if self.marks.size <= 1:  # the header alone
            return True
        last = self.mark_words[1:].tobytes()
        return os.pread(descriptor, len(last), int(self.marks[1]) * WORD_BYTES) == last

    def verify(self, descriptor: int) -> Content | None:
        """Return this content with the file's present status; None where its keys differ.

        The keys are read only where the status has changed: it changes when the file is
        created, and sometimes when it is written.
        """
        now = _status(descriptor)
        if now == self.status or not self.used:
            return self
        data = os.pread(descriptor, self.used - HEADER_BYTES, HEADER_BYTES)
        with suppress(FileFault):
            if _checksum(file_format.split_entries(data, HEADER_BYTES)) == self.key_checksum:
                return replace(self, status=now)
        return None


UNKNOWN: Final = Content()


class NewEntries(NamedTuple):
    """The result of reading a file.

    Attributes:
        content: the new known content.
        entries: the entries after the known ones; all entries where the content was replaced.
        replaced: whether the file has another content than the known one.
        partial_key: the place of a partly written key, in words; 0 for none.
    """

    content: Content
    entries: list[Entry]
    replaced: bool
    partial_key: int


def read_new_entries(descriptor: int, known: Content, *, held_open: bool) -> NewEntries:
    """Read the entries that are not known yet.

    Args:
        descriptor: the open file.
        known: the known content.
        held_open: whether the descriptor was open since `known` was read, so that it is the
            same file.

    Raises:
        FileFault: The file cannot be read, or its content is not valid.
    """
    try:
        header = os.pread(descriptor, HEADER_BYTES, 0)
        status = _status(descriptor)  # before the entries, so that a later change is noticed
        used = file_format.used_bytes(header, status[1])
        replaced = (
            used < known.used
            or not known.has_last_key(descriptor)
            or not (held_open or known.verify(descriptor))
        )
        if replaced:
            known = UNKNOWN
        entries = _read_entries(descriptor, known.used or HEADER_BYTES, used)
        partial_key = 0
        if entries and file_format.partly_written(entries[-1].key):
            partial_key = entries.pop().begin
            used = partial_key * WORD_BYTES
        places, words = known.marks[1:], known.mark_words[1:]
        if entries:
            places = np.arange(entries[-1].begin, entries[-1].value_place)
            words = _read_words(descriptor, entries[-1].begin, places.size)
        content = Content(
            used=used,
            incomplete=bool(partial_key) or not used,
            key_checksum=_checksum(entries, known.key_checksum),
            status=status,
            marks=np.concatenate([[0], places]).astype(np.int64),
            mark_words=np.concatenate([np.frombuffer(header, np.int64), words]),
        )
    except OSError as error:
        raise from_os_error(error) from None
    return NewEntries(content, entries, replaced, partial_key)


def read_values(descriptor: int, content: Content) -> NDArray[np.float64]:
    """Read all known words of a file as float64, shape (words,).

    Raises:
        FileFault: The file cannot be read, or is shorter.
    """
    try:
        return _read_words(descriptor, 0, content.used // WORD_BYTES).view(np.float64)
    except OSError as error:
        raise from_os_error(error) from None


def too_short() -> FileFault:
    """Return the fault of a file that is shorter than its known content."""
    return FileFault(Reason.TRUNCATED, _TOO_SHORT)


def _status(descriptor: int) -> _Status:
    found = os.fstat(descriptor)
    return found.st_ctime_ns, found.st_size


def _read_words(descriptor: int, begin: int, count: int) -> NDArray[np.int64]:
    data = os.pread(descriptor, count * WORD_BYTES, begin * WORD_BYTES)
    if len(data) < count * WORD_BYTES:
        raise too_short()
    return np.frombuffer(data, np.int64)


def _checksum(entries: list[Entry], before: int = 0) -> int:
    """Return the checksum of the keys of entries, continued from the checksum `before`."""
    # A key contains no zero byte, so a zero marks the end of each key in the sum.
    return crc32(b"".join([entry.key + b"\0" for entry in entries]), before)


def _read_entries(descriptor: int, begin: int, used: int) -> list[Entry]:
    """Read the entries from byte `begin` on, in pieces: gigabytes of zeros may be in use."""
    entries: list[Entry] = []
    piece = _PIECE_BYTES
    while begin < used and not (entries and not entries[-1].key):
        size = min(piece, used - begin)
        data = os.pread(descriptor, size, begin)
        if len(data) < size:
            raise FileFault(Reason.TRUNCATED, f"its header declares {used} bytes in use")
        part = file_format.split_entries(data, begin, used)
        if part:
            entries += part
            begin = part[-1].value_place * WORD_BYTES + file_format.VALUE_AND_TIMESTAMP_BYTES
        else:
            piece *= 2  # the key is longer than the piece
    return entries
