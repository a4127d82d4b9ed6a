"""Blocking calls: one at a time, with a deadline, in threads that nobody waits for."""

from __future__ import annotations

import threading

import pytest

from dynamometer.process.blocking import BlockingCalls, HangError


async def test_a_call_that_hangs_is_waited_for_and_not_repeated() -> None:
    calls: BlockingCalls[str] = BlockingCalls("a file system", deadline=0.05)
    free, started = threading.Event(), []

    def hang() -> str:
        started.append(threading.current_thread())
        free.wait()
        return "late"

    for _ in range(3):
        with pytest.raises(HangError, match=r"a file system: no answer within 0.05 s"):
            await calls.run(hang)
    assert len(started) == 1
    assert started[0].daemon
    free.set()
    started[0].join()
    assert await calls.run(lambda: "another") == "late"
    assert await calls.run(lambda: "another") == "another"


async def test_an_error_is_raised_where_the_call_is_awaited() -> None:
    calls: BlockingCalls[None] = BlockingCalls("a file")

    def fail() -> None:
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await calls.run(fail)
