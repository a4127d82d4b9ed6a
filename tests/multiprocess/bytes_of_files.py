"""The bytes of multiprocess files, valid and invalid ones."""

from __future__ import annotations

import json
import struct


def entry(key: bytes, value: float = 1.0, *, length: int | None = None) -> bytes:
    """Return the bytes of an entry; `length` may be wrong."""
    padded = key + b" " * (8 - (len(key) + 4) % 8)
    return (
        struct.pack("=i", len(key) if length is None else length)
        + padded
        + struct.pack("=dd", value, 0)
    )


def content(*entries: bytes, used: int | None = None, size: int = 1 << 12) -> bytes:
    """Return the bytes of a file; `used` may be wrong."""
    body = b"".join(entries)
    header = struct.pack("=ii", 8 + len(body) if used is None else used, 0)
    return (header + body).ljust(size, b"\0")


def key(name: str = "c", sample: str = "c_total", labels: object = None, text: str = "h") -> bytes:
    """Return the bytes of a key."""
    return json.dumps([name, sample, labels or {}, text]).encode()
