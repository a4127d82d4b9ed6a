"""Calls that may block for ever: file systems, /proc, name services.

Such a call runs in a daemon thread, for which neither the event loop nor the end of the process
waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from dynamometer.errors import DynamometerError
from dynamometer.process.threads import DaemonThreads

DEADLINE_SECONDS: Final = 5.0
Result = TypeVar("Result")


class HangError(DynamometerError):
    """A call did not return before its deadline; it goes on in its thread."""


# Not the loop's default: a loop that somebody else runs may have one that waits for its threads.
_threads: Final = DaemonThreads()


class BlockingCalls(Generic[Result]):
    """Blocking calls for one purpose, at most one at a time.

    Used by one task of one event loop. A call that exceeds its deadline is not repeated: the next
    `run` waits for the same call, so that a hanging file system occupies one thread.
    """

    def __init__(self, what: str, *, deadline: float = DEADLINE_SECONDS) -> None:
        """Start nothing yet.

        Args:
            what: the calls' purpose, for the error message.
            deadline: seconds that a call may take.
        """
        self._what = what
        self._deadline = deadline
        self._started = 0.0
        self._running: asyncio.Future[Result] | None = None

    async def run(self, function: Callable[[], Result]) -> Result:
        """Call `function` in a thread; wait for the former call instead where that still runs.

        Raises:
            HangError: The call exceeds the deadline.
        """
        loop = asyncio.get_running_loop()
        if self._running is None:
            self._started = loop.time()
            self._running = loop.run_in_executor(_threads, function)
            self._running.add_done_callback(_retrieve)
        running = self._running
        left = max(0.0, self._started + self._deadline - loop.time())
        await asyncio.wait({running}, timeout=left)
        if not running.done():
            raise HangError(f"{self._what}: no answer within {self._deadline:g} s")
        if self._running is running:
            self._running = None
        return running.result()


def _retrieve(future: asyncio.Future[Result]) -> None:
    """Take the exception of a call for which nobody waits any more: asyncio would log it."""
    if not future.cancelled():
        future.exception()
