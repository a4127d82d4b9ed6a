"""Set a member of a JSON object without changing any other byte.

Only the bytes of the member change: numbers keep their digits, members keep their order, and the
same name inside strings or nested objects is unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    view = memoryview(content)
    if place is not None:
        return b"".join((view[: place.start], value, view[place.stop :]))
    closing = content.rindex(b"}")
    separator = b"" if _EMPTY.fullmatch(content) else b","
    member = msgspec.json.encode(name) + b":" + value
    return b"".join((view[:closing], separator, member, view[closing:]))


def _find(content: bytes, name: str) -> slice | None:
    """Return the position of the value of the last member with this name; None if missing."""
    value = _decoder(name).decode(content).value  # type: ignore[attr-defined]  # defined at run time
    if value is _MISSING:
        return None
    # A Raw is a view of the decoded buffer (msgspec's documentation, "Raw").
    view = np.frombuffer(value, np.uint8)
    start = view.ctypes.data - np.frombuffer(content, np.uint8).ctypes.data
    return slice(start, start + view.size)


@lru_cache(maxsize=64)
def _decoder(name: str) -> msgspec.json.Decoder[msgspec.Struct]:
    fields = [("value", msgspec.Raw, _MISSING)]
    return msgspec.json.Decoder(msgspec.defstruct("Member", fields, rename={"value": name}))
