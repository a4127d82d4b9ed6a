"""Set members of a JSON object without changing any other byte.

Only the bytes of the members change: numbers keep their digits, members keep their order, and the
same name inside strings or nested objects is unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

_MISSING: Final = msgspec.Raw()
_EMPTY: Final = re.compile(rb"\s*\{\s*\}\s*")


def set_member(content: bytes, path: Sequence[str], value: bytes) -> bytes:
    """Return `content` with the member at `path` set to `value`.

    If a name occurs more than once in an object, the last member is replaced, because `json`,
    `orjson` and pydantic read the last one. A missing member is appended. An object on the path
    that is missing or null is created. The time is linear in the length of `content`.

    Args:
        content: a JSON object.
        path: the names that lead to the member, from the outermost object; at least one.
        value: JSON text.

    Raises:
        msgspec.DecodeError: `content`, or a value on the path, is not a JSON object.
        RecursionError: `content` is nested too deeply.
    """
    name, *rest = path
    place = _find(content, name)
    if rest:
        inner = b"{}" if place is None else content[place]
        value = set_member(b"{}" if inner == b"null" else inner, rest, value)
    if place is None:
        return _append(content, msgspec.json.encode(name) + b":" + value)
    view = memoryview(content)
    return b"".join((view[: place.start], value, view[place.stop :]))


def set_members(content: bytes, members: Mapping[str, bytes]) -> bytes:
    """Return `content` with several members of the outermost object set, as `set_member` sets one.

    No name is added twice: SGLang's Rust server refuses an object that has a name twice.

    Args:
        content: a JSON object.
        members: JSON text by name; at least one.

    Raises:
        msgspec.DecodeError: `content` is not a JSON object.
        RecursionError: `content` is nested too deeply.
    """
    found = msgspec.structs.astuple(_decoder(*members).decode(content))
    if all(value is _MISSING for value in found):  # one copy of a large body
        added = [msgspec.json.encode(name) + b":" + value for name, value in members.items()]
        return _append(content, b",".join(added))
    for name, value in members.items():
        content = set_member(content, (name,), value)
    return content


def _append(content: bytes, members: bytes) -> bytes:
    view = memoryview(content)
    closing = content.rindex(b"}")
    separator = b"" if _EMPTY.fullmatch(content) else b","
    return b"".join((view[:closing], separator, members, view[closing:]))


def _find(content: bytes, name: str) -> slice | None:
    """Return the position of the value of the last member with this name; None if missing."""
    value = _decoder(name).decode(content).value0  # type: ignore[attr-defined]  # defined at run time
    if value is _MISSING:
        return None
    # A Raw is a view of the decoded buffer (msgspec's documentation, "Raw").
    view = np.frombuffer(value, np.uint8)
    start = view.ctypes.data - np.frombuffer(content, np.uint8).ctypes.data
    return slice(start, start + view.size)


@lru_cache(maxsize=64)
def _decoder(*names: str) -> msgspec.json.Decoder[msgspec.Struct]:
    members = {f"value{number}": name for number, name in enumerate(names)}
    fields = [(field, msgspec.Raw, _MISSING) for field in members]
    return msgspec.json.Decoder(msgspec.defstruct("Members", fields, rename=members))
