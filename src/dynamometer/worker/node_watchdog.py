"""Watch a node of an engine that answers no requests: its processes, and the worker of node 0.

The HTTP server of such a node reports its own life only. So the node counts as unresponsive when
one of its processes is stopped, or while node 0, whose questions reach all nodes, is unresponsive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import psutil

from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.children import descendants
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.lifecycle import Lifecycle
from dynamometer.runtime.record import State
from dynamometer.worker.group import Group
from dynamometer.worker.incidents import WATCHED, Incidents
from dynamometer.worker.process_tree import CHECK_SECONDS
from dynamometer.worker.progress import TICK_SECONDS

_LONGEST_TITLE: Final = 80


class NodeWatchdog:
    """Watches the engine's processes on this node, across restarts of the engine."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        incidents: Incidents,
        *,
        group: Group,
        enabled: bool,
        hang_seconds: float,
        stopped: Callable[[], Mapping[int, str]] | None = None,
    ) -> None:
        """Store the arguments; `run` starts to watch.

        Args:
            lifecycle: the state of the engine.
            incidents: changes the state of the engine.
            group: the nodes of the engine.
            enabled: False to watch nothing.
            hang_seconds: the seconds after which a stopped process makes the node unresponsive.
            stopped: returns the titles of the stopped processes, by pid; blocks. By default, of all
                descendants of this process.
        """
        self._lifecycle = lifecycle
        self._incidents = incidents
        self._group = group
        self._enabled = enabled
        self._hang_seconds = hang_seconds
        self._find_stopped = stopped or stopped_descendants
        self._checking: BlockingCalls[Mapping[int, str]] = BlockingCalls(
            "processes", deadline=CHECK_SECONDS
        )
        self._seconds: Mapping[int, float] = {}  # for which each process has been stopped

    async def run(self) -> None:
        """Watch while the engine is ready or unresponsive, until cancelled."""
        try:
            while self._enabled:
                await asyncio.sleep(TICK_SECONDS)
                if self._lifecycle.engine_state in WATCHED:
                    await self._incidents.report(await self._find_reason())
                else:
                    self._seconds = {}
                    await self._incidents.close()
        finally:
            await self._incidents.close()

    async def _find_reason(self) -> str:
        """Return the reason why this node is unresponsive; empty if it is not."""
        try:
            stopped = await self._checking.run(self._find_stopped)
        except HangError:
            stopped = {}
        # A tick is one second, whatever time has passed: this process may have been stopped too.
        self._seconds = {pid: self._seconds.get(pid, 0.0) + TICK_SECONDS for pid in stopped}
        for pid, seconds in self._seconds.items():
            if seconds >= self._hang_seconds:
                return f"its process {stopped[pid]} (pid {pid}) is stopped"
        leader = self._group.leader
        if leader is not None and leader.state is State.UNRESPONSIVE:
            return f"node 0 (worker {hexadecimal(leader.id)}) is unresponsive"
        return ""


def stopped_descendants() -> Mapping[int, str]:
    """Return the titles of the stopped descendants of this process, by pid."""
    found = {}
    for process in descendants(psutil.Process()):
        try:
            if process.status() == psutil.STATUS_STOPPED:
                title = (process.cmdline() or [process.name()])[0]
                found[process.pid] = title.strip()[:_LONGEST_TITLE]
        except psutil.Error:
            continue
    return found
