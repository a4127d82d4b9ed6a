"""The ends of processes that are not children of the process that watches them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import psutil
import pytest

from dynamometer.process.exits import Exits

# Starts a child, prints its pid, and does not reap it.
PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE).pid, flush=True)
time.sleep(60)
"""
SLEEPS = "import time; time.sleep(60)"


@pytest.fixture
async def exits() -> AsyncIterator[Exits]:
    watching = Exits()
    yield watching
    watching.close()


class Grandchild:
    """A process whose parent is a child of the test."""

    def __init__(self, program: str = SLEEPS) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(child=program)], stdout=subprocess.PIPE
        )
        assert self.parent.stdout is not None
        self.process = psutil.Process(int(self.parent.stdout.readline()))

    def __enter__(self) -> psutil.Process:
        return self.process

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.kill()
        self.parent.kill()
        self.parent.communicate()


async def test_the_end_of_a_grandchild_is_noticed_with_its_signal(exits: Exits) -> None:
    with Grandchild() as process:
        exits.watch(process, "scheduler")
        exits.watch(process, "scheduler")
        process.send_signal(signal.SIGABRT)
        async with asyncio.timeout(1):
            await exits.any.wait()
        (found,) = exits.found
        assert (found.pid, found.name, found.code) == (process.pid, "scheduler", -signal.SIGABRT)


async def test_the_end_of_a_grandchild_is_noticed_with_its_exit_code(exits: Exits) -> None:
    with Grandchild("import time; time.sleep(0.3); raise SystemExit(3)") as process:
        exits.watch(process, "scheduler")
        async with asyncio.timeout(10):
            await exits.any.wait()
        assert exits.found[0].code == 3


async def test_a_stopped_process_has_not_ended(exits: Exits) -> None:
    with Grandchild() as process:
        exits.watch(process, "scheduler")
        process.suspend()
        process.resume()
        await asyncio.sleep(0)
        assert not exits.any.is_set()


async def test_a_process_that_ended_before_it_was_watched_has_an_unknown_code(
    exits: Exits,
) -> None:
    with Grandchild() as process:
        pass
    psutil.wait_procs([process])
    exits.watch(process, "detokenizer")
    assert exits.any.is_set()
    assert exits.found[0].code is None


async def test_nothing_is_noticed_after_close(exits: Exits) -> None:
    with Grandchild() as process:
        exits.watch(process, "scheduler")
        exits.close()
        process.kill()
        psutil.wait_procs([process], timeout=0.05)
        assert exits.found == []
