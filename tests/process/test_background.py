"""Blocking calls in a thread of their own."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from functools import partial

import pytest

from dynamometer.process import background
from dynamometer.process.background import BackgroundThread
from processes import PYTHON
from waiting import run_ready_tasks

HANGING = """
import asyncio, threading
from dynamometer.process.background import BackgroundThread

async def main():
    started = threading.Event()
    BackgroundThread("hanging").submit(lambda: (started.set(), threading.Event().wait()))
    await asyncio.to_thread(started.wait)

asyncio.run(main())
"""


async def test_calls_run_in_their_order_in_one_thread() -> None:
    thread = BackgroundThread("calls")
    order: list[int] = []
    names: set[str] = set()

    def call(number: int) -> int:
        order.append(number)
        names.add(threading.current_thread().name)
        return number

    futures = [thread.submit(partial(call, number)) for number in range(50)]
    assert await asyncio.gather(*futures) == list(range(50))
    assert (order, names) == (list(range(50)), {"calls"})


async def test_an_error_belongs_to_the_caller() -> None:
    thread = BackgroundThread("calls")

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await thread.submit(fail)
    assert await thread.submit(lambda: 1) == 1


async def test_a_call_that_is_cancelled_before_it_begins_does_not_run() -> None:
    thread = BackgroundThread("calls")
    go, ran = threading.Event(), []
    first = thread.submit(lambda: go.wait(10))
    second = thread.submit(lambda: ran.append(2))
    second.cancel()
    go.set()
    await first
    await thread.submit(lambda: None)
    assert ran == []


async def test_the_event_loop_goes_on_while_a_call_blocks() -> None:
    go = threading.Event()
    blocked = BackgroundThread("calls").submit(lambda: go.wait(10))
    await run_ready_tasks()
    assert not blocked.done()
    go.set()
    assert await blocked


async def test_a_thread_without_calls_ends_and_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "IDLE_SECONDS", 0.0)
    thread = BackgroundThread("calls")
    for _ in range(3):
        runner = await thread.submit(threading.current_thread)
        await asyncio.to_thread(runner.join, 10)
        assert not runner.is_alive()


def test_a_call_that_hangs_does_not_keep_the_process_from_ending() -> None:
    begun = time.monotonic()
    subprocess.run([PYTHON, "-c", HANGING], check=True, timeout=30)
    assert time.monotonic() - begun < 20
