"""The other nodes of an engine, as a worker reads them from discovery."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from dynamometer.errors import EngineError
from dynamometer.process.signals import Stop
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.record import Record, Role, State
from dynamometer.worker.nodes import Nodes
from waiting import until

OWN = Record(role=Role.WORKER, id=11, namespace="n", component="c", nodes=2, node_rank=1, group="g")
LEADER = replace(OWN, id=10, node_rank=0, state=State.READY)


class Signals:
    """The signals of a process, which a test sends."""

    def __init__(self) -> None:
        self.immediate = asyncio.Event()

    def as_stop(self) -> Stop:
        return cast("Stop", self)


@pytest.fixture
async def running() -> AsyncIterator[asyncio.Task[EngineError]]:
    """An engine that does not end."""

    async def run() -> EngineError:
        await asyncio.Event().wait()
        return EngineError("")

    task = asyncio.create_task(run())
    yield task
    task.cancel()
    await asyncio.wait({task})


@asynccontextmanager
async def seen(path: Path) -> AsyncIterator[Nodes]:
    """Register node 1, and keep its view of the other nodes current."""
    discovery, nodes = FileDiscovery(path), Nodes(OWN)
    async with discovery.register(OWN), nodes.following(discovery):
        nodes.group.start_run()
        yield nodes


async def test_the_nodes_are_known_before_the_engine_starts(tmp_path: Path) -> None:
    async with FileDiscovery(tmp_path).register(LEADER), seen(tmp_path) as nodes:
        assert nodes.group.leader == LEADER


async def test_nodes_that_are_not_in_discovery_are_named(tmp_path: Path) -> None:
    async with seen(tmp_path) as nodes:
        assert nodes.describe_missing() == "; not in discovery: node 0"
        async with FileDiscovery(tmp_path).register(LEADER):
            await until(lambda: not nodes.describe_missing())


async def test_a_node_that_ends_is_lost(tmp_path: Path) -> None:
    async with seen(tmp_path) as nodes:
        async with FileDiscovery(tmp_path).register(LEADER):
            await until(lambda: nodes.group.leader is not None)
        await until(lambda: "its worker ended" in nodes.group.loss)


async def test_a_removed_registry_is_not_the_loss_of_a_node(tmp_path: Path) -> None:
    """Each process writes its own record again, within seconds."""
    async with FileDiscovery(tmp_path).register(LEADER) as other, seen(tmp_path) as nodes:
        for _ in range(2):
            shutil.rmtree(tmp_path / "instances")
            await until(lambda: any((tmp_path / "instances").glob("*b.json")), within=5)
            await other.update(replace(LEADER, since=time.time()))
            await asyncio.sleep(0.5)
        assert not nodes.group.loss


async def test_one_removed_record_is_not_the_loss_of_its_node(tmp_path: Path) -> None:
    """A program that removes old files may remove the record of one node only."""
    path = tmp_path / "instances" / f"{LEADER.id:016x}.json"
    async with FileDiscovery(tmp_path).register(LEADER), seen(tmp_path) as nodes:
        for _ in range(2):
            path.unlink()
            await until(path.exists, within=5)
            await asyncio.sleep(0.5)
        assert not nodes.group.loss
        assert nodes.group.leader == LEADER


async def test_node_0_has_time_to_finish(
    tmp_path: Path, running: asyncio.Task[EngineError]
) -> None:
    signals = Signals()
    async with seen(tmp_path) as nodes:
        async with FileDiscovery(tmp_path).register(replace(LEADER, state=State.DRAINING)):
            await until(lambda: nodes.group.leader is not None)
            waiting = asyncio.create_task(
                nodes.let_node_0_finish(signals.as_stop(), running, within=60)
            )
            await asyncio.sleep(1.5)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 2)


@pytest.mark.parametrize("state", [State.READY, State.RESTARTING])
async def test_a_node_ends_soon_while_node_0_goes_on(
    tmp_path: Path, running: asyncio.Task[EngineError], state: State
) -> None:
    leader = FileDiscovery(tmp_path).register(replace(LEADER, state=state))
    async with leader, seen(tmp_path) as nodes:
        started = time.monotonic()
        await nodes.let_node_0_finish(Signals().as_stop(), running, within=60)
        assert time.monotonic() - started < 2


async def test_a_second_signal_ends_the_wait(
    tmp_path: Path, running: asyncio.Task[EngineError]
) -> None:
    signals = Signals()
    leader = FileDiscovery(tmp_path).register(replace(LEADER, state=State.DRAINING))
    async with leader, seen(tmp_path) as nodes:
        signals.immediate.set()
        waiting = nodes.let_node_0_finish(signals.as_stop(), running, within=60)
        await asyncio.wait_for(waiting, 1)
