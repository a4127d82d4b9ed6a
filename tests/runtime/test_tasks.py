"""Tasks are owned: begun anew where they fail, awaited where they end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from dynamometer.runtime import tasks


async def test_work_that_fails_is_said_once_and_begun_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = asyncio.Event()
    faults = [ValueError("one"), ValueError("one"), ValueError("two")]

    async def work() -> None:
        if faults:
            raise faults.pop(0)
        done.set()

    async with tasks.keeping_on(work, name="looking", again=0.001), asyncio.timeout(10):
        await done.wait()
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [str(record.exc_info[1]) for record in said if record.exc_info] == ["one", "two"]
    assert said[0].getMessage() == "looking: failed, and is tried again every 0.001 s"


async def test_nothing_of_it_is_left_after_the_context() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def fail() -> None:
        async with tasks.keeping_on(work, name="work"):
            await asyncio.sleep(0)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert ended
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_event_or_a_task_whichever_is_first() -> None:
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
