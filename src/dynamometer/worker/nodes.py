"""The other nodes of an engine: read from discovery, and considered when this worker ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from dynamometer.errors import DiscoveryError, EngineError
from dynamometer.process import tasks
from dynamometer.process.signals import Stop
from dynamometer.runtime.discovery.interface import RESTORE_SECONDS, Discovery, Processes
from dynamometer.runtime.record import Record, State
from dynamometer.worker.group import Group

_READ_SECONDS: Final = 0.25
# A service manager that ends all nodes sends the signals one after the other.
_SIGNALS_SECONDS: Final = 1.0


class Nodes:
    """The nodes of an engine, of which the worker of this process runs one.

    Attributes:
        group: the nodes as discovery shows them.
    """

    def __init__(self, own: Record) -> None:
        """Start without other nodes.

        Args:
            own: the record of this worker.
        """
        self.group = Group(own)
        self._own = own
        self._discovery: Discovery | None = None
        # The last record of each process, and the time when discovery showed it, by id.
        self._seen: dict[int, tuple[Record, float]] = {}

    @asynccontextmanager
    async def following(self, discovery: Discovery) -> AsyncIterator[None]:
        """Keep the group current while the context is open; it is current at the start."""
        self._discovery = discovery
        await self.refresh()

        async def follow() -> None:
            while True:
                await asyncio.sleep(_READ_SECONDS)
                await self.refresh()

        async with tasks.restarting(follow, name="the nodes of the engine"):
            yield

    def describe_missing(self) -> str:
        """Return the nodes for which the engine waits, for the end of a message; may be empty."""
        missing = ", ".join(f"node {rank}" for rank in self.group.missing)
        return f"; not in discovery: {missing}" if missing else ""

    async def refresh(self) -> None:
        """Read discovery; while it cannot be read or is incomplete, keep the last nodes."""
        discovery = self._discovery
        if discovery is None:
            return
        with suppress(DiscoveryError):  # the discovery logs it
            found = await discovery.processes()
            if any(record.id == self._own.id for record in found.live):
                self.group.update([*found.live, *self._removed(found)])

    def _removed(self, found: Processes) -> list[Record]:
        """Return the records that another program may have removed: live processes restore them.

        A process that vanished does not live, and one that ends shows this in its record before.
        """
        now = time.monotonic()
        shown = {record.id for record in (*found.live, *found.vanished)}
        self._seen = {
            id_: (record, seen_at)
            for id_, (record, seen_at) in self._seen.items()
            if id_ not in shown
            and record.state not in (State.DRAINING, State.FAILED)
            and now - seen_at < RESTORE_SECONDS
        }
        removed = [record for record, _ in self._seen.values()]
        self._seen |= {record.id: (record, now) for record in found.live}
        return removed

    async def let_node_0_finish(
        self, stop: Stop, ended: asyncio.Task[EngineError], *, within: float
    ) -> None:
        """Wait until node 0 has answered its requests and ended its engine, if it is ending too.

        Args:
            stop: the signals; the second one ends the wait.
            ended: done when this node's part of the engine has ended.
            within: the longest time to wait, in seconds.
        """
        started = time.monotonic()
        while not (stop.immediate.is_set() or ended.done()):
            passed = time.monotonic() - started
            leader = self.group.leader
            finishing = leader is not None and leader.state is State.DRAINING
            if passed > (within if finishing else min(_SIGNALS_SECONDS, within)):
                return
            await asyncio.sleep(0.05)
