"""Calls that may block, or never return, in threads that the process can leave behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Generic, ParamSpec, TypeVar

from dynamometer.errors import DirectoryError

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class DaemonThreads(ThreadPoolExecutor):
    """An event loop's default executor that nobody waits for at the end: a daemon thread a call.

    The standard one joins its threads when the process ends: one that hangs on a file system
    keeps the process alive.
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
            except BaseException as error:  # noqa: BLE001, RUF100  # raised where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name="blocking", daemon=True).start()
        return future


class BoundedCall(Generic[Result]):
    """A function that may hang, called in a thread: one call at a time, so at most one hangs."""

    def __init__(self, function: Callable[[], Result]) -> None:
        """Nothing is called yet."""
        self._function = function
        self._running: asyncio.Future[Result] | None = None

    async def __call__(self, within: float) -> Result | None:
        """Return what the function returns, or None where that takes longer.

        A call that was left behind is waited for first; its result is returned then.

        Args:
            within: how long to wait, seconds.
        """
        if self._running is None:
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(None, self._function)
        await asyncio.wait([self._running], timeout=within)
        if not self._running.done():
            return None
        finished, self._running = self._running, None
        return finished.result()


@asynccontextmanager
async def entered(
    context: AbstractContextManager[Result], *, name: str, within: float
) -> AsyncIterator[Result]:
    """Enter and leave `context` in threads.

    Args:
        context: what is entered.
        name: of the context, for messages.
        within: how long entering and leaving may take each, seconds; what takes longer is left
            to its thread.

    Raises:
        DirectoryError: Entering took longer.
    """
    enter = BoundedCall(lambda: (context.__enter__(),))
    if (entry := await enter(within)) is None:
        raise DirectoryError(f"{name}: no answer within {within:g} s; does a file system hang?")
    try:
        yield entry[0]
    finally:
        leave = BoundedCall(lambda: (context.__exit__(None, None, None),))
        if await leave(within) is None:
            logger.error("%s: no answer within %g s; it is left behind", name, within)
