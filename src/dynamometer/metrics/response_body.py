"""The body of a response, up to a size limit, decoded in another thread than the event loop's."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

import aiohttp

# The window bits of zlib for each encoding; servers send deflate with and without zlib's header.
_WINDOW_BITS: Final = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


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
        EncodingError: The encoding is unknown, or the body does not have this encoding.
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
    pieces, size = [], 0
    while body:
        decoder = zlib.decompressobj(window_bits)
        pieces.append(decoder.decompress(body, limit - size + 1))
        size += len(pieces[-1])
        if size > limit:
            raise TooLargeError(limit)
        if not decoder.eof:
            raise EncodingError("the compressed body is truncated")
        body = decoder.unused_data
    return b"".join(pieces)
