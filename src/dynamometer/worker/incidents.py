"""Incidents: the times in which an engine lives and does not answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from dynamometer.process import tasks
from dynamometer.runtime.lifecycle import Lifecycle
from dynamometer.runtime.record import State

logger = logging.getLogger(__name__)

# The states in which an engine can become unresponsive, or ready again.
WATCHED: Final = (State.READY, State.UNRESPONSIVE)


class Incidents:
    """The incidents of the engine of one worker, across restarts of the engine."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        on_change: Callable[[], Awaitable[None]],
        on_hang: Callable[[str], Coroutine[None, None, None]],
    ) -> None:
        """Store the arguments.

        Args:
            lifecycle: the state of the engine, which this object changes.
            on_change: called and awaited after each change of the state.
            on_hang: called once in each incident, with its reason, in a task of its own.
        """
        self._lifecycle = lifecycle
        self._on_change = on_change
        self._on_hang = on_hang
        self._reported = ""
        self._silent_since = 0.0  # valid while a reason is reported
        self._hang: asyncio.Task[None] | None = None

    async def report(self, reason: str) -> None:
        """Show that the engine does not answer for this reason; empty if the engine answers."""
        if self._lifecycle.engine_state is not State.UNRESPONSIVE:
            self._reported = ""  # of an earlier engine
        reported, self._reported = self._reported, reason
        if reason == reported:
            return
        now = asyncio.get_running_loop().time()
        if reason:
            self._lifecycle.note_silent(time.time(), reason)
            logger.error("the engine is unresponsive: %s", reason)
            if not reported:
                self._silent_since = now
                await self.close()
                self._hang = asyncio.create_task(self._on_hang(reason), name="hang")
        else:
            self._lifecycle.note_ready(time.time())
            seconds = now - self._silent_since
            logger.warning("the engine answers again, after %.0f s as unresponsive", seconds)
        await self._on_change()

    async def close(self) -> None:
        """End the task of `on_hang`."""
        if self._hang is not None:
            await tasks.end(self._hang)
            self._hang = None
