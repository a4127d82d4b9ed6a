"""Read a request's body off the event loop where that takes long.

A small body is read at once. A large or compressed one is read in one of a few threads: reading
takes milliseconds then, and each such body may take as much memory as the largest one. msgspec
keeps the interpreter's lock, so that the loop stands still for one of its calls (4 to 10 ms at
16 MiB), and no longer for all of them.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from dynamometer.engines.requests import BadBodyError, RequestBody, parse

_Result = TypeVar("_Result")

# As many bodies are read in threads at a time: each may take as much memory as a body.
_THREADS: Final = 2
# What is shorter is read on the event loop, in less time than a thread takes to begin: 0.1 ms.
SHORT_BYTES: Final = 2**17


class TooLargeError(Exception):
    """The body is longer than allowed, once decompressed."""


class BodyThreads:
    """The threads that read large bodies; a cancelled request's thread is busy until it ends."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="body")

    async def run(self, read: Callable[[], _Result], *, size: int) -> _Result:
        """Return what `read` returns, called in a thread if it reads many bytes.

        Args:
            read: the call.
            size: how many bytes it may read.
        """
        if size <= SHORT_BYTES:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._pool, read)

    def close(self) -> None:
        """Start no more reading; a thread that reads goes on to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def read(content: bytes, *, encoding: str, content_type: str, limit: int) -> RequestBody:
    """Decompress a body where it has an encoding, and read it.

    Raises:
        BadBodyError: The body cannot be understood.
        TooLargeError: The body is longer than `limit`, once decompressed.
    """
    plain = decompressed(content, encoding, limit=limit) if encoding else content
    return parse(plain, content_type)


def decompressed(content: bytes, encoding: str, *, limit: int) -> bytes:
    """Return a body as it was before its `Content-Encoding`.

    Args:
        content: the body as it was received.
        encoding: `gzip`, `deflate` or `identity`.
        limit: the most bytes that are returned; no more than that is decompressed.

    Raises:
        BadBodyError: The body is not in its encoding, or the encoding is not supported.
        TooLargeError: The body is longer than `limit`.
    """
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 15}.get(encoding)
    if encoding == "identity":
        return content
    if bits is None:
        raise BadBodyError(f"Content-Encoding {encoding[:40]!r} is not supported: send gzip")
    decoder = zlib.decompressobj(bits)
    try:
        plain = decoder.decompress(content, limit + 1)
    except zlib.error:
        raise BadBodyError(
            f"The request body is not valid {encoding}, which its Content-Encoding names"
        ) from None
    if len(plain) > limit:
        raise TooLargeError
    if not decoder.eof:
        raise BadBodyError(f"The request body is truncated {encoding}")
    if decoder.unused_data:  # forwarded without it, the request would be another one
        raise BadBodyError(f"The request body goes on after the end of its {encoding} data")
    return plain
