"""Tasks are owned: begun anew where they fail, awaited where they end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from dynamometer.process import tasks


async def test_work_that_fails_is_said_once_and_begun_anew(
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
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [str(record.exc_info[1]) for record in said if record.exc_info] == ["one", ""]
    assert said[0].getMessage() == "looking failed, and is restarted every 0.001 s"


async def test_a_fault_after_a_while_in_which_all_was_well_is_said_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "STABLE_SECONDS", 0.05)
    done = asyncio.Event()
    runs = [0.0, 0.0, 0.1, 0.0]

    async def work() -> None:
        if not runs:
            done.set()
            return
        await asyncio.sleep(runs.pop(0))
        raise ValueError

    async with tasks.restarting(work, name="work", retry=0.001), asyncio.timeout(10):
        await done.wait()
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 2


async def test_what_was_cancelled_elsewhere_ends_no_work(caplog: pytest.LogCaptureFixture) -> None:
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


async def test_nothing_of_it_is_left_after_the_context() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def fail() -> None:
        async with tasks.restarting(work, name="work"):
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
