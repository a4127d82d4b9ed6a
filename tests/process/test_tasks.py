"""Background tasks: restarted after a failure, awaited at the end of their context."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from dynamometer.process import tasks


async def test_work_that_fails_is_restarted_and_logged_once_for_each_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = asyncio.Event()
    faults: list[Exception] = [ValueError("one"), ValueError("another, from there"), KeyError()]

    async def work() -> None:
        if not faults:
            done.set()
        elif len(faults) > 1:
            raise faults.pop(0)
        else:
            raise faults.pop(0)  # from another place

    async with tasks.restarting(work, name="looking", retry=0.001), asyncio.timeout(10):
        await done.wait()
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [str(record.exc_info[1]) for record in logged if record.exc_info] == ["one", ""]
    assert logged[0].getMessage() == "looking failed, and is restarted every 0.001 s"


async def test_a_fault_after_a_long_run_without_a_fault_is_logged_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(tasks, "time", SimpleNamespace(monotonic=lambda: now))
    done = asyncio.Event()
    runs = [0.0, 0.0, tasks.STABLE_SECONDS + 1, 0.0]

    async def work() -> None:
        nonlocal now
        if not runs:
            done.set()
            return
        now += runs.pop(0)
        raise ValueError

    async with tasks.restarting(work, name="work", retry=0.001), asyncio.timeout(10):
        await done.wait()
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 2


async def test_work_is_restarted_after_a_task_that_it_awaits_was_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = asyncio.Event()
    waited_for = asyncio.create_task(asyncio.sleep(600))
    waited_for.cancel()

    async def work() -> None:
        if caplog.records:
            done.set()
        else:
            await waited_for

    async with tasks.restarting(work, name="work", retry=0.001), asyncio.timeout(10):
        await done.wait()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_no_task_remains_after_the_context() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def fail() -> None:
        async with tasks.restarting(work, name="work"):
            await asyncio.sleep(0)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert ended
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_first_of_waits_for_the_event_or_the_task_whichever_is_first() -> None:
    event = asyncio.Event()
    lasting = asyncio.create_task(asyncio.sleep(600))
    short = asyncio.create_task(asyncio.sleep(0))
    async with asyncio.timeout(10):
        await tasks.first_of(event, short)
        event.set()
        await tasks.first_of(event, lasting)
    await tasks.end(lasting)
    assert lasting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
