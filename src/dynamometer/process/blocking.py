"""Calls that may hang forever: file systems, /proc, name services.

Such a call runs in a daemon thread. Neither the event loop nor the end of the process waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Final, Generic, ParamSpec, TypeVar

from dynamometer.errors import DynamometerError

logger = logging.getLogger(__name__)

DEADLINE_SECONDS: Final = 5.0
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class HangError(DynamometerError):
    """A call that did not return before its deadline; the call continues in its thread."""


class DaemonThreads(ThreadPoolExecutor):
    """An event loop's default executor that runs each call in a daemon thread of its own.

    The standard executor joins its threads when the process ends, so that a thread that hangs on a
    file system keeps the process alive.
    """

    def submit(
        self,
        fn: Callable[Arguments, Result],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Future[Result]:
        """See `Executor.submit`."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001, RUF100  # the future raises the error
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name="blocking", daemon=True).start()
        return future


# The default executor of a user's own event loop may wait for its threads; this one does not.
_threads: Final = DaemonThreads()


class BlockingCalls(Generic[Result]):
    """Blocking calls for one purpose, at most one at a time.

    One task of one event loop uses an object of this class. While a call that exceeded its deadline
    still runs, `run` starts no other: a hanging file system occupies one thread. A late result is
    the result of the next call only if that is the same call; otherwise it is dropped.
    """

    def __init__(self, purpose: str, *, deadline: float = DEADLINE_SECONDS) -> None:
        """Store the arguments; `run` starts a call.

        Args:
            purpose: the purpose of the calls, for the error message.
            deadline: the longest time that a call may take, in seconds.
        """
        self._purpose = purpose
        self._deadline = deadline
        self._started = 0.0
        self._call: object = None
        self._running: asyncio.Future[Result] | None = None

    async def run(
        self,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Call `function` in a thread; if a previous call still runs, wait for its end first.

        The same call, with an equal function and equal arguments, is not repeated then.

        Raises:
            HangError: This call, or the previous one, exceeded the deadline.
        """
        loop = asyncio.get_running_loop()
        call = (function, args, kwargs)
        if self._running is not None:
            late = self._running
            await self._wait(late)
            if call == self._call:
                return late.result()
        self._call, self._started = call, loop.time()
        running = self._running = loop.run_in_executor(_threads, partial(function, *args, **kwargs))
        running.add_done_callback(retrieve_exception)
        await self._wait(running)
        return running.result()

    async def _wait(self, running: asyncio.Future[Result]) -> None:
        """Wait until the running call ends.

        Raises:
            HangError: The call exceeded the deadline.
        """
        remaining = self._started + self._deadline - asyncio.get_running_loop().time()
        await asyncio.wait({running}, timeout=max(0.0, remaining))
        if not running.done():
            raise HangError(f"{self._purpose}: no answer within {self._deadline:g} s")
        if self._running is running:
            self._running = None


@asynccontextmanager
async def entered(
    context: AbstractContextManager[Result], *, name: str, within: float
) -> AsyncIterator[Result]:
    """Enter and leave `context` in threads.

    Args:
        context: the context manager.
        name: the name of the context, for messages.
        within: the longest time to wait for each of the two calls, in seconds. A call that takes
            longer continues in its thread.

    Raises:
        HangError: Entering took longer than `within`.
    """
    entering: BlockingCalls[Result] = BlockingCalls(name, deadline=within)
    value = await entering.run(context.__enter__)
    try:
        yield value
    finally:
        leaving: BlockingCalls[bool | None] = BlockingCalls(name, deadline=within)
        try:
            await leaving.run(context.__exit__, None, None, None)
        except HangError as error:
            logger.warning("%s; the clean-up is abandoned", error)


def retrieve_exception(future: asyncio.Future[Result]) -> None:
    """Retrieve the exception of an abandoned call, so that asyncio does not log the exception."""
    if not future.cancelled():
        future.exception()
