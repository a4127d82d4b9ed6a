"""The state of a node that answers no requests, from its processes and its leader."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from dynamometer.runtime.lifecycle import EngineExit, ExitCause, Lifecycle
from dynamometer.runtime.record import Record, Role, State
from dynamometer.worker import node_watchdog
from dynamometer.worker.group import Group
from dynamometer.worker.incidents import Incidents
from dynamometer.worker.node_watchdog import NodeWatchdog, stopped_descendants
from waiting import until

TICK = 0.01
HANG = 5 * TICK


def node(rank: int, state: State = State.READY) -> Record:
    return Record(
        role=Role.WORKER,
        id=10 + rank,
        namespace="n",
        component="c",
        nodes=2,
        node_rank=rank,
        group="g",
        state=state,
    )


class Node:
    """The watchdog of node 1.

    Attributes:
        stopped: the titles of its stopped processes, by pid.
        changes: the state after each change.
        hangs: the reason of each incident.
    """

    def __init__(self) -> None:
        self.stopped: dict[int, str] = {}
        self.changes: list[State] = []
        self.hangs: list[str] = []
        self.group = Group(node(1))
        self.life = Lifecycle(0.0)
        self.life.note_started(1.0)
        self.life.note_ready(2.0)

    @asynccontextmanager
    async def watched(self, *, enabled: bool = True) -> AsyncIterator[None]:
        watchdog = NodeWatchdog(
            self.life,
            Incidents(self.life, self._change, self._hang),
            group=self.group,
            enabled=enabled,
            hang_seconds=HANG,
            stopped=lambda: dict(self.stopped),
        )
        task = asyncio.create_task(watchdog.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def lead(self, state: State) -> None:
        self.group.update([node(0, state)])

    async def _change(self) -> None:
        self.changes.append(self.life.state)

    async def _hang(self, reason: str) -> None:
        self.hangs.append(reason)


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_watchdog, "TICK_SECONDS", TICK)


async def test_a_stopped_process_is_the_reason_until_it_continues() -> None:
    follower = Node()
    async with follower.watched():
        follower.lead(State.READY)
        follower.stopped = {7: "sglang::scheduler_TP1"}
        await until(lambda: follower.life.state is State.UNRESPONSIVE)
        assert follower.life.reason == "its process sglang::scheduler_TP1 (pid 7) is stopped"
        follower.lead(State.UNRESPONSIVE)  # as a consequence
        await asyncio.sleep(3 * TICK)
        assert "pid 7" in follower.life.reason
        follower.lead(State.READY)
        follower.stopped = {}
        await until(lambda: follower.life.state is State.READY)
        assert follower.life.reason == ""
    assert follower.changes == [State.UNRESPONSIVE, State.READY]
    assert follower.hangs == ["its process sglang::scheduler_TP1 (pid 7) is stopped"]


async def test_processes_that_stop_for_a_moment_are_not_a_hang() -> None:
    follower = Node()
    async with follower.watched():
        for pid in range(10):
            follower.stopped = {pid: "one"}
            await asyncio.sleep(2 * TICK)
    assert not follower.changes


async def test_a_node_is_unresponsive_with_its_leader() -> None:
    follower = Node()
    async with follower.watched():
        follower.lead(State.UNRESPONSIVE)
        await until(lambda: follower.life.state is State.UNRESPONSIVE)
        assert follower.life.reason == "node 0 (worker 000000000000000a) is unresponsive"
        follower.lead(State.DRAINING)  # dyno drain
        await until(lambda: follower.life.state is State.READY)


async def test_a_restarted_engine_has_no_past() -> None:
    follower = Node()
    async with follower.watched():
        follower.stopped = {7: "one"}
        await until(lambda: follower.life.state is State.UNRESPONSIVE)
        follower.stopped = {}
        follower.life.note_exit(3.0, EngineExit(code=-9, cause=ExitCause.SIGNAL, description=""))
        follower.life.note_started(4.0)
        follower.life.note_ready(5.0)
        await asyncio.sleep(3 * TICK)
    assert follower.changes == [State.UNRESPONSIVE]


async def test_nothing_is_watched_if_the_checks_are_disabled() -> None:
    follower = Node()
    follower.stopped = {7: "one"}
    async with follower.watched(enabled=False):
        await asyncio.sleep(2 * HANG)
    assert not follower.changes


def test_a_stopped_child_is_found_by_its_title() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid not in stopped_descendants()
        child.send_signal(signal.SIGSTOP)
        while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
            pass
        assert stopped_descendants()[child.pid] == sys.executable
    finally:
        child.kill()
        child.communicate()
