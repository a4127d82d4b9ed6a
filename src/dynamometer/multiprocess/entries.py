"""The inside of a multiprocess file (prometheus_client 0.26, `mmap_dict.py`).

    int32 used            bytes in use, this header included
    int32 padding
    entries, each at a multiple of eight bytes:
        int32 length      of the key
        key               UTF-8 JSON: [family, sample name, {label: value}, help text]
        padding           one to eight spaces, so that the value is at a multiple of eight
        float64 value
        float64 timestamp seconds since the epoch; 0 where it has no meaning

The writer appends an entry and only then raises `used`; an entry never moves or goes.
Numbers have the byte order of the machine.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import orjson

from dynamometer.multiprocess.faults import FileFault, Reason

HEADER_BYTES: Final = 8
WORD_BYTES: Final = 8
_KEY_PARTS: Final = 4
_TEXT: Final = {str}
VALUE_AND_TIMESTAMP_BYTES: Final = 16
_int32 = struct.Struct("=i").unpack_from


class Entry(NamedTuple):
    """One entry.

    Attributes:
        begin: where it begins in the file, in words of eight bytes.
        value: where its value is, in words; its timestamp is in the next one.
        key: the key's bytes.
    """

    begin: int
    value: int
    key: bytes


class Key(NamedTuple):
    """A key's content."""

    family: str
    sample: str
    labels: dict[str, str]
    documentation: str


def used_bytes(header: bytes, size: int) -> int:
    """How many bytes of a file are in use; 0 where its process has not begun to write.

    Args:
        header: its first bytes.
        size: its length in bytes.

    Raises:
        FileFault: the header is missing, or says what cannot be.
    """
    if not header:
        raise FileFault(Reason.EMPTY, "the file is empty")
    if len(header) < HEADER_BYTES:
        raise FileFault(Reason.TRUNCATED, f"{len(header)} bytes are less than a header")
    used: int = _int32(header, 0)[0]
    if used == 0:
        return 0
    if used < HEADER_BYTES or used % WORD_BYTES:
        raise FileFault(Reason.CORRUPT, f"{used} bytes in use, it says")
    if used > size:
        raise FileFault(Reason.TRUNCATED, f"{used} bytes in use, it says, of {size}")
    return used


def split(data: bytes, begin: int, used: int | None = None) -> list[Entry]:
    """The entries in a part of a file, up to the first one whose key has no length.

    Behind that one nothing can be known: a part that is all zeros has no entries to make.

    Args:
        data: the part; its last entry may be cut off where more is in use.
        begin: where it begins in the file, in bytes.
        used: how many bytes of the file are in use; None: up to the part's end.

    Raises:
        FileFault: an entry's length leads out of what is in use.
    """
    entries: list[Entry] = []
    position, end = 0, len(data)
    last = end if used is None else used - begin
    while position < end:
        length = _int32(data, position)[0]
        key = position + 4
        value = key + length + 8 - (length + 4) % 8
        if length < 0 or value + VALUE_AND_TIMESTAMP_BYTES > last:
            raise FileFault(Reason.CORRUPT, f"a key of {length} bytes at byte {begin + position}")
        if value + VALUE_AND_TIMESTAMP_BYTES > end:
            break
        entries.append(
            Entry((begin + position) // 8, (begin + value) // 8, data[key : key + length])
        )
        if not length:
            break
        position = value + VALUE_AND_TIMESTAMP_BYTES
    return entries


def half_written(key: bytes) -> bool:
    """Whether a key's bytes are not all there yet: a new part of a file is filled with zeros."""
    return not key or b"\0" in key


def parse_key(key: bytes) -> Key:
    """A key's content.

    Raises:
        FileFault: it is no JSON, no UTF-8, or not what a key holds.
    """
    try:
        parts = orjson.loads(key)
    except orjson.JSONDecodeError as error:
        raise FileFault(Reason.KEY, f"a key is no JSON: {error}") from None
    if not isinstance(parts, list) or len(parts) != _KEY_PARTS:
        raise FileFault(Reason.KEY, f"a key of other parts than four: {key[:80]!r}")
    family, sample, labels, documentation = parts
    if not (isinstance(family, str) and isinstance(sample, str) and isinstance(documentation, str)):
        raise FileFault(Reason.KEY, f"a key with names that are no text: {key[:80]!r}")
    if not family or not sample:
        raise FileFault(Reason.KEY, f"a key with an empty name: {key[:80]!r}")
    if not isinstance(labels, dict) or not {type(value) for value in labels.values()} <= _TEXT:
        raise FileFault(Reason.KEY, f"a key with labels that are no object of texts: {key[:80]!r}")
    if "" in labels:  # no parser takes `{="x"}`: the whole page would be lost
        raise FileFault(Reason.KEY, f"a key with an empty label name: {key[:80]!r}")
    return Key(family, sample, labels, documentation)
