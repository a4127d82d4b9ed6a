"""The body of a response, up to a size limit, decoded in another thread than the event loop's."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

import aiohttp

# The window bits of zlib for each encoding; servers send deflate with and without zlib's header.
_WINDOW_BITS: Final = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}

# More are refused, because empty ones have no limit of their decoded size.
_MOST_MEMBERS: Final = 1000
# zlib copies the rest of a slice for each member.
_SLICE_BYTES: Final = 64 << 10


class TooLargeError(ValueError):
    """A body with more bytes than the limit, as received or decoded."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit >> 10} KiB")


class EncodingError(ValueError):
    """A body that cannot be decoded; the message names its encoding."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body of a response without its content encoding.

    Args:
        response: the response to a request with `auto_decompress=False`.
        limit: the largest size in bytes, both received and decoded.

    Raises:
        TooLargeError: The body is larger.
        EncodingError: The encoding is unknown, or the body does not have this encoding.
        aiohttp.ClientError: The connection broke.
    """
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > limit:
            raise TooLargeError(limit)
        pieces.append(piece)
    body = b"".join(pieces)
    encodings = ",".join(response.headers.getall("Content-Encoding", ())).lower()
    for encoding in reversed([one.strip() for one in encodings.split(",")]):
        if encoding not in ("", "identity"):
            body = await asyncio.to_thread(decode, body, encoding, limit)
    return body


def decode(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a body without one content encoding.

    Args:
        body: the encoded body; may be empty, or consist of several gzip members.
        encoding: `gzip`, `x-gzip` or `deflate`.
        limit: the largest size of the decoded body in bytes.

    Raises:
        TooLargeError: The decoded body is larger.
        EncodingError: The encoding is unknown, or the body does not have this encoding, or the
            body has more than 1,000 members.
    """
    try:
        formats = _WINDOW_BITS[encoding]
    except KeyError:
        raise EncodingError(
            f"Content-Encoding {encoding[:40]!r} is not supported: identity was requested, gzip "
            "and deflate are accepted"
        ) from None
    for window_bits in formats:
        try:
            return _inflate(body, window_bits, limit)
        except zlib.error:
            continue
    raise EncodingError(f"the Content-Encoding is {encoding}, but the body is not {encoding}")


def _inflate(body: bytes, window_bits: int, limit: int) -> bytes:
    pieces, size, start, members = [], 0, 0, 0
    view = memoryview(body)
    while start < len(view):
        members += 1
        if members > _MOST_MEMBERS:
            raise EncodingError(f"the compressed body has more than {_MOST_MEMBERS:,} members")
        decoder = zlib.decompressobj(window_bits)
        while not decoder.eof:
            if start == len(view):
                raise EncodingError("the compressed body is truncated")
            encoded = view[start : start + _SLICE_BYTES]
            pieces.append(decoder.decompress(encoded, limit - size + 1))
            size += len(pieces[-1])
            if size > limit:
                raise TooLargeError(limit)
            start += len(encoded) - len(decoder.unused_data)
    return b"".join(pieces)
