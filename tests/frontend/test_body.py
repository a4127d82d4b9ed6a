from __future__ import annotations

import asyncio
import gzip
import threading
import zlib

import pytest

from dynamometer.engines.requests import BadBodyError
from dynamometer.frontend.body import SHORT_BYTES, BodyThreads, TooLargeError, decompress


def test_a_compressed_body_is_read_and_a_bomb_is_not() -> None:
    text = b'{"model": "m"}' * 100
    assert decompress(gzip.compress(text), "gzip", limit=2000) == text
    assert decompress(zlib.compress(text), "deflate", limit=2000) == text
    assert decompress(text, "identity", limit=10) == text
    with pytest.raises(TooLargeError):
        decompress(gzip.compress(b" " * 2**24), "gzip", limit=2000)
    for content, encoding in (
        (text, "gzip"),
        (gzip.compress(text)[:-9], "gzip"),
        (gzip.compress(text) + b"{}", "gzip"),
        (text, "br"),
    ):
        with pytest.raises(BadBodyError):
            decompress(content, encoding, limit=2000)


async def test_a_cancelled_request_holds_its_thread_until_that_ends() -> None:
    threads = BodyThreads()
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        begun.release()
        go_on.wait()

    try:
        running = [asyncio.create_task(threads.run(slow, size=SHORT_BYTES + 1)) for _ in range(2)]
        assert [await asyncio.to_thread(begun.acquire, timeout=5) for _ in running] == [True, True]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        next_one = asyncio.create_task(threads.run(slow, size=SHORT_BYTES + 1))
        # Both threads are still busy.
        assert not await asyncio.to_thread(begun.acquire, timeout=0.05)
        go_on.set()
        await asyncio.wait_for(next_one, 5)
    finally:
        go_on.set()
        threads.close()
