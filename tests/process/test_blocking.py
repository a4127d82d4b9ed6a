"""Calls that hang are abandoned: they delay neither the caller nor the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from dynamometer.process.blocking import BlockingCalls, HangError, entered

HANGS = """
import asyncio, threading
from dynamometer.process import event_loop

async def main():
    try:
        async with asyncio.timeout(0.1):
            await asyncio.to_thread(threading.Event().wait)
    except TimeoutError:
        print("left behind", await asyncio.to_thread(lambda: "and on"), flush=True)

event_loop.run(main(), use_uvloop={use_uvloop})
"""


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("use_uvloop", [True, False])
def test_a_thread_that_hangs_does_not_keep_its_process(use_uvloop: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(use_uvloop=use_uvloop)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == "left behind and on\n"
    assert not done.stderr


async def test_a_context_that_hangs_when_it_is_left_is_left_behind(
    never: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.contextmanager
    def hangs() -> Iterator[str]:
        yield "value"
        never.wait()

    async with entered(hangs(), name="the directory", within=0.05) as value:
        assert value == "value"
    assert "the directory: no answer within 0.05 s; the clean-up is abandoned" in caplog.text


async def test_a_context_that_hangs_when_it_is_entered_is_an_error(never: threading.Event) -> None:
    @contextlib.contextmanager
    def hangs() -> Iterator[None]:
        never.wait()
        yield

    async def enter() -> None:
        async with entered(hangs(), name="the directory", within=0.05):
            raise AssertionError("entered")

    with pytest.raises(HangError, match=r"the directory: no answer within 0\.05 s"):
        await enter()


async def test_a_context_is_entered_and_left_off_the_loop() -> None:
    threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        threads.append(threading.current_thread())
        yield
        threads.append(threading.current_thread())

    async def fail() -> None:
        async with entered(context(), name="it", within=10):
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert len(threads) == 2
    assert threading.current_thread() not in threads


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
    assert await calls.run(hang) == "late"
    assert len(started) == 1
    assert await calls.run(lambda: "another") == "another"


@pytest.mark.parametrize("late", [("of the engine that ended",), (), ("of the engine", "b")])
async def test_a_late_result_is_not_the_answer_to_another_question(
    late: tuple[str, ...],
) -> None:
    calls: BlockingCalls[tuple[str, ...]] = BlockingCalls("a file system", deadline=0.05)
    free = threading.Event()

    def question(*words: str) -> tuple[str, ...]:
        free.wait(20)
        return words

    with pytest.raises(HangError):
        await calls.run(question, *late)
    with pytest.raises(HangError):
        await calls.run(question, "of the engine")
    free.set()
    async with asyncio.timeout(20):
        while True:
            try:
                assert await calls.run(question, "of the engine") == ("of the engine",)
                break
            except HangError:
                await asyncio.sleep(0.01)


async def test_a_call_whose_caller_was_cancelled_gives_no_result_to_the_next_one() -> None:
    calls: BlockingCalls[str] = BlockingCalls("a file system", deadline=20)
    free, started = threading.Event(), threading.Event()

    def wait() -> str:
        started.set()
        free.wait()
        return "late"

    first = asyncio.create_task(calls.run(wait))
    while not started.is_set():
        await asyncio.sleep(0.001)
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.create_task(calls.run(lambda: "another"))
    await asyncio.sleep(0)
    free.set()
    assert await second == "another"


async def test_an_error_is_raised_where_the_call_is_awaited() -> None:
    calls: BlockingCalls[None] = BlockingCalls("a file")

    def fail() -> None:
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await calls.run(fail)
