"""Requests in flight finish before a process ends, unless the user insists."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator

import pytest

from dynamometer.process.signals import InFlight, Stop
from waiting import run_ready_tasks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
async def stop() -> AsyncIterator[Stop]:
    yield Stop()
    for number in SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)


async def test_without_requests_nothing_is_waited_for(stop: Stop) -> None:
    async with asyncio.timeout(5):
        await InFlight().drain(stop, 60)


async def test_the_last_request_ends_the_wait(stop: Stop) -> None:
    in_flight = InFlight()
    with in_flight:
        with in_flight:
            waiting = asyncio.create_task(in_flight.drain(stop, 60))
            await run_ready_tasks()
        await run_ready_tasks()
        assert not waiting.done()
    async with asyncio.timeout(5):
        await waiting
    assert in_flight.count == 0


async def test_requests_that_are_broken_off_are_logged(
    stop: Stop, caplog: pytest.LogCaptureFixture
) -> None:
    in_flight = InFlight()
    with in_flight, in_flight:
        await in_flight.drain(stop, 0)
    assert caplog.messages == ["requests broken off: 2"]


async def test_a_second_signal_ends_the_wait(stop: Stop) -> None:
    in_flight = InFlight()
    with in_flight:
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(5):
            await stop.requested.wait()
        assert not stop.immediate.is_set()
        waiting = asyncio.create_task(in_flight.drain(stop, 60))
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await waiting
        assert stop.immediate.is_set()
        assert in_flight.count == 1


async def test_a_second_signal_ends_the_delay(stop: Stop) -> None:
    await stop.delay(0)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await stop.requested.wait()
    waiting = asyncio.create_task(stop.delay(60))
    await run_ready_tasks()
    assert not waiting.done()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await waiting


async def test_a_supervised_process_ignores_a_second_signal() -> None:
    stop = Stop(supervised=True)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await stop.requested.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await run_ready_tasks()
    assert not stop.immediate.is_set()
    for number in SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)


async def test_only_the_supervisor_logs_a_signal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dynamometer"), "propagate", True)
    caplog.set_level(logging.DEBUG, logger="dynamometer")
    for supervised, level in ((True, logging.DEBUG), (False, logging.INFO)):
        caplog.clear()
        stop = Stop(supervised=supervised)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await stop.requested.wait()
        found = [(record.levelno, record.getMessage()) for record in caplog.records]
        assert found == [(level, "SIGTERM: ending")]
    for number in SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)


async def test_the_time_ends_the_wait(stop: Stop) -> None:
    before = asyncio.all_tasks()
    in_flight = InFlight()
    with in_flight:
        async with asyncio.timeout(5):
            await in_flight.drain(stop, 0.01)
    assert asyncio.all_tasks() == before
