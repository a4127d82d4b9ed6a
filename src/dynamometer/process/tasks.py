"""Background tasks; the owner of a task waits until the task has ended."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[], Awaitable[None]]
RETRY_SECONDS: Final = 1.0
# After `work` has run for this time, its next exception is logged in any case.
STABLE_SECONDS: Final = 60.0


@asynccontextmanager
async def restarting(work: Work, *, name: str, retry: float = RETRY_SECONDS) -> AsyncIterator[None]:
    """Run `work` in a task while the context is open, and restart it when it raises.

    An exception from `work` is a fault of this program, and is logged with its traceback. An
    exception from the same line as the previous one is logged again only after `STABLE_SECONDS`
    without an exception.

    Args:
        work: the function to run; the task ends when the function returns.
        name: the name of the task, for messages and for asyncio.
        retry: the time before a restart, in seconds.
    """
    task = asyncio.create_task(_restart(work, name, retry), name=name)
    try:
        yield
    finally:
        await end(task)


async def _restart(work: Work, name: str, retry: float) -> None:
    logged: tuple[str, int | None] | None = None
    while True:
        started = time.monotonic()
        try:
            return await work()
        except (Exception, asyncio.CancelledError) as error:
            if _cancelled():
                raise
            if time.monotonic() - started > STABLE_SECONDS:
                logged = None
            place = _place(error)
            if logged != place:
                logged = place
                logger.exception("%s failed, and is restarted every %g s", name, retry)
        await asyncio.sleep(retry)


def _cancelled() -> bool:
    """Return whether this task was cancelled; False if only an awaited future was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _place(error: BaseException) -> tuple[str, int | None]:
    """Return the file and the line that raised `error`."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename, last.lineno


async def first_of(event: asyncio.Event, task: asyncio.Task[Result]) -> None:
    """Wait until `event` is set or `task` is done, whichever is first."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(waiting)


async def end(task: asyncio.Task[Result]) -> None:
    """Cancel `task`, and wait until it has ended; do not raise its exception."""
    task.cancel()
    await asyncio.wait({task})
