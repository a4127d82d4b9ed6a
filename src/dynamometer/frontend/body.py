"""The decompression and parsing of request bodies, in threads for large bodies.

A small body is parsed on the event loop. Parsing a large or compressed body takes milliseconds, so
it runs in one of a few threads; their number limits the memory for decompressed bodies. msgspec
holds the interpreter's lock during a call (4 to 10 ms at 16 MiB), which blocks the event loop.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from dynamometer.engines.requests import BadBodyError, RequestBody, parse

_Result = TypeVar("_Result")

# Of all processes of a frontend; each thread may use as much memory as the largest body.
_THREADS: Final = 2
# A shorter body takes less time than the start of a thread, 0.1 ms.
SHORT_BYTES: Final = 2**17


class TooLargeError(Exception):
    """The decompressed body is larger than allowed."""


class BodyThreads:
    """The threads for large bodies; the cancellation of a request does not end its thread."""

    def __init__(self, *, processes: int = 1) -> None:
        """Start no thread yet.

        Args:
            processes: the number of processes that share the limit; each has one thread at least.
        """
        self._pool = ThreadPoolExecutor(max(1, _THREADS // processes), thread_name_prefix="body")

    async def run(self, read: Callable[[], _Result], *, size: int) -> _Result:
        """Call `read`, in a thread if it may read many bytes, and return its result.

        Args:
            read: the function.
            size: the largest number of bytes that the function may read.
        """
        if size <= SHORT_BYTES:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._pool, read)

    def close(self) -> None:
        """Stop starting calls; a call that is running continues to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def read(content: bytes, *, encoding: str, content_type: str, limit: int) -> RequestBody:
    """Decompress a body if it has an encoding, and parse it.

    Args:
        content: the body as it was received.
        encoding: its `Content-Encoding`; empty for none.
        content_type: its `Content-Type`.
        limit: the largest accepted length of the decompressed body, in bytes.

    Raises:
        BadBodyError: The body is not valid.
        TooLargeError: The decompressed body is longer than `limit`.
    """
    plain = decompress(content, encoding, limit=limit) if encoding else content
    return parse(plain, content_type)


def decompress(content: bytes, encoding: str, *, limit: int) -> bytes:
    """Return the decompressed body.

    Args:
        content: the body as it was received.
        encoding: `gzip`, `deflate` or `identity`.
        limit: the largest number of bytes to decompress.

    Raises:
        BadBodyError: The body is not in its encoding, or the encoding is not supported.
        TooLargeError: The decompressed body is longer than `limit`.
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
            f"The request body is not valid {encoding}, the encoding in its Content-Encoding header"
        ) from None
    if len(plain) > limit:
        raise TooLargeError
    if not decoder.eof:
        raise BadBodyError(f"The request body is truncated {encoding}")
    if decoder.unused_data:  # to drop the data would change the request
        raise BadBodyError(f"The request body continues after the end of its {encoding} data")
    return plain
