"""The file format of prometheus_client 0.26: the name of a file, and its content (`mmap_dict.py`).

A name is `TYPE_PROCESS.db`, a gauge's `gauge_MODE_PROCESS.db`: `counter_123.db`,
`gauge_livesum_123.db`. The content:

    int32 used            bytes in use, this header included
    int32 padding
    entries, each at a multiple of eight bytes:
        int32 length      of the key
        key               UTF-8 JSON: [family, sample name, {label: value}, help text]
        padding           one to eight spaces, so that the value is at a multiple of eight
        float64 value
        float64 timestamp seconds since the epoch; 0 where the type has no timestamps

The writer first appends an entry and then increases `used`; an entry is never moved or removed.
Numbers have the byte order of the machine.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, NamedTuple

import orjson

from dynamometer.multiprocess.faults import FileFault, Reason

SUFFIX: Final = ".db"
# The types that prometheus_client writes in multiprocess mode.
_TYPES: Final = frozenset({"counter", "gauge", "histogram", "summary"})
_MODES: Final = frozenset({"all", "min", "max", "sum", "mostrecent"})
_PID: Final = "pid"

WORD_BYTES: Final = 8
HEADER_BYTES: Final = 8
VALUE_AND_TIMESTAMP_BYTES: Final = 16
_LENGTH_BYTES: Final = 4
_KEY_PARTS: Final = 4
_TEXT: Final = {str}
_QUOTED_BYTES: Final = 80
_int32 = struct.Struct("=i").unpack_from


@dataclass(frozen=True, slots=True)
class FileName:
    """The parts of a file's name.

    Attributes:
        type: the type of every family in the file.
        mode: the rule that combines a gauge's values of several processes, without `live`;
            empty for other types.
        live: whether prometheus_client's `mark_process_dead` removes the file.
        process: the identifier of the process that writes the file, usually its pid.
        pid: the `pid` label that prometheus_client derives from the name: the second or third
            part without its last three characters.
    """

    type: str
    mode: str
    live: bool
    process: str
    pid: str

    @property
    def pid_label(self) -> bool:
        """True where each process has its own series, with a label `pid`."""
        return self.mode == "all"

    def adjust_labels(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        """Return the labels of a series, with the label `pid` as prometheus_client writes it.

        A gauge of mode `all` has the `pid` of its file, other gauges have none; other types
        keep a `pid` of their key.

        Args:
            labels: the labels of the series' key.
        """
        if self.pid_label:
            return {**labels, _PID: self.pid}
        if self.type == "gauge" and _PID in labels:
            return {name: value for name, value in labels.items() if name != _PID}
        return labels


class Entry(NamedTuple):
    """One entry of a file.

    Attributes:
        begin: the entry's place in the file, in words of eight bytes.
        value_place: the place of its value, in words; its timestamp is in the next word.
        key: the key's bytes.
    """

    begin: int
    value_place: int
    key: bytes


class Key(NamedTuple):
    """The parsed key of an entry."""

    family: str
    sample: str
    labels: dict[str, str]
    documentation: str


def parse_name(path: str) -> FileName:
    """Parse the name of the file at `path`.

    Raises:
        FileFault: The name is not the name of a multiprocess file.
    """
    name = PurePath(path).name
    try:
        name.encode()
    except UnicodeEncodeError:  # a page cannot contain it as the label `pid`
        raise FileFault(Reason.NAME, "its name is not UTF-8") from None
    words = name.split("_")
    kind, rest = words[0], words[1:]
    if kind not in _TYPES:
        raise FileFault(Reason.NAME, f"unknown metric type {kind!r} in its name")
    mode = ""
    if kind == "gauge":
        mode, rest = (rest[0], rest[1:]) if rest else ("", [])
        if mode.removeprefix("live") not in _MODES:
            raise FileFault(Reason.NAME, f"unknown gauge mode {mode!r} in its name")
    if not rest:
        raise FileFault(Reason.NAME, "its name has no process identifier")
    return FileName(
        type=kind,
        mode=mode.removeprefix("live"),
        live=mode.startswith("live"),
        process="_".join(rest).removesuffix(SUFFIX),
        pid=rest[0][: -len(SUFFIX)],
    )


def used_bytes(header: bytes, size: int) -> int:
    """Return the number of bytes in use, 0 before the writer has started.

    Args:
        header: the first bytes of the file.
        size: the length of the file in bytes.

    Raises:
        FileFault: The header is missing or not valid.
    """
    if not header:
        raise FileFault(Reason.EMPTY, "the file is empty")
    if len(header) < HEADER_BYTES:
        raise FileFault(Reason.TRUNCATED, f"{len(header)} bytes are less than a header")
    used: int = _int32(header, 0)[0]
    if used == 0:
        return 0
    if used < HEADER_BYTES or used % WORD_BYTES:
        raise FileFault(Reason.CORRUPT, f"its header declares {used} bytes in use")
    if used > size:
        raise FileFault(Reason.TRUNCATED, f"its header declares {used} bytes in use of {size}")
    return used


def split_entries(data: bytes, begin: int, used: int | None = None) -> list[Entry]:
    """Split a part of a file into entries, up to the first entry whose key has length 0.

    An unwritten part of a file is all zeros, so that a key of length 0 ends the known content.

    Args:
        data: the part; its last entry may be incomplete where more bytes are in use.
        begin: the part's place in the file, in bytes.
        used: the number of bytes of the file in use; up to the end of the part by default.

    Raises:
        FileFault: An entry reaches beyond the bytes in use.
    """
    entries: list[Entry] = []
    position, end = 0, len(data)
    last = end if used is None else used - begin
    while position < end:
        length = _int32(data, position)[0]
        key = position + _LENGTH_BYTES
        value = key + length + WORD_BYTES - (length + _LENGTH_BYTES) % WORD_BYTES
        if length < 0 or value + VALUE_AND_TIMESTAMP_BYTES > last:
            raise FileFault(Reason.CORRUPT, f"a key of {length} bytes at byte {begin + position}")
        if value + VALUE_AND_TIMESTAMP_BYTES > end:
            break
        entries.append(
            Entry(
                (begin + position) // WORD_BYTES,
                (begin + value) // WORD_BYTES,
                data[key : key + length],
            )
        )
        if not length:
            break
        position = value + VALUE_AND_TIMESTAMP_BYTES
    return entries


def partly_written(key: bytes) -> bool:
    """Return whether bytes of a key are missing: a new part of a file is filled with zeros."""
    return not key or b"\0" in key


def parse_key(key: bytes) -> Key:
    """Parse the bytes of a key.

    Raises:
        FileFault: The key is not valid JSON in UTF-8, or does not have the four parts of a key.
    """
    try:
        parts = orjson.loads(key)
    except orjson.JSONDecodeError as error:
        raise FileFault(Reason.KEY, f"a key is not valid JSON: {error}") from None
    if not isinstance(parts, list) or len(parts) != _KEY_PARTS:
        raise _key_fault("does not have four parts", key)
    family, sample, labels, documentation = parts
    if not (isinstance(family, str) and isinstance(sample, str) and isinstance(documentation, str)):
        raise _key_fault("has names that are not strings", key)
    if not family or not sample:
        raise _key_fault("has an empty name", key)
    if not isinstance(labels, dict) or not {type(value) for value in labels.values()} <= _TEXT:
        raise _key_fault("has labels that are not an object of strings", key)
    if "" in labels:  # no parser accepts `{="x"}`: scrapers would reject the whole page
        raise _key_fault("has an empty label name", key)
    return Key(family, sample, labels, documentation)


def _key_fault(problem: str, key: bytes) -> FileFault:
    return FileFault(Reason.KEY, f"a key {problem}: {key[:_QUOTED_BYTES]!r}")
