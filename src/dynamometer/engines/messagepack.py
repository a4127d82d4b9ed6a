"""A decoder of MessagePack, for the types in SGLang's load snapshots.

msgspec decodes MessagePack too, but takes 1.2 MB of memory, and an exporter, which may take 60 MiB
in all, needs msgspec for nothing else. The format is documented at https://msgpack.org.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]

_CONSTANTS: Final[Mapping[int, Value]] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS: Final = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
# The types with a length after the type, and the number of bytes of the length.
_LENGTHS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_STRINGS: Final = frozenset({0xD9, 0xDA, 0xDB})
_ARRAYS: Final = frozenset({0xDC, 0xDD})


def decode(data: bytes) -> Value:
    """Return the value at the beginning of `data`.

    Raises:
        ValueError: `data` is truncated, or has a type that is not supported: binary data,
            extensions, and maps with keys that are not strings.
    """
    try:
        return _decode(data, 0)[0]
    except (IndexError, TypeError, struct.error, RecursionError):
        raise ValueError("truncated, nested too deeply, or a key is not a string") from None


def _decode(data: bytes, at: int) -> tuple[Value, int]:
    """Return the value at index `at`, and the index of the next value."""
    kind = data[at]
    at += 1
    if kind < 0x80:
        return kind, at
    if kind >= 0xE0:
        return kind - 0x100, at
    if kind in _CONSTANTS:
        return _CONSTANTS[kind], at
    if number := _NUMBERS.get(kind):
        value: int | float = number.unpack_from(data, at)[0]
        return value, at + number.size
    if size := _LENGTHS.get(kind):
        length = int.from_bytes(data[at : at + size])
        at += size
    else:  # the length is in the type
        length = kind & (0x1F if 0xA0 <= kind < 0xC0 else 0x0F)
    if kind in _STRINGS or 0xA0 <= kind < 0xC0:
        return _text(data, at, length), at + length
    if kind in _ARRAYS or 0x90 <= kind < 0xA0:
        return _decode_array(data, at, length)
    if kind in (0xDE, 0xDF) or 0x80 <= kind < 0x90:
        members, at = _decode_array(data, at, 2 * length)
        return {_key(key): member for key, member in zip(*[iter(members)] * 2, strict=True)}, at
    raise ValueError(f"type {kind:#x} is not supported")


def _text(data: bytes, at: int, length: int) -> str:
    if at + length > len(data):
        raise IndexError
    return data[at : at + length].decode()


def _decode_array(data: bytes, at: int, length: int) -> tuple[list[Value], int]:
    values = []
    for _ in range(length):
        value, at = _decode(data, at)
        values.append(value)
    return values, at


def _key(value: Value) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
