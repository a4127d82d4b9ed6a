"""Tasks beside what a process does: each owned by somebody, who awaits its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[], Awaitable[None]]
AGAIN_SECONDS: Final = 1.0


@asynccontextmanager
async def keeping_on(work: Work, *, name: str, again: float = AGAIN_SECONDS) -> AsyncIterator[None]:
    """Keep `work` going while the context is open, and none of it afterwards.

    What it raises is a fault of ours, which it was not written to meet. It is said, with its
    traceback, once as long as it is the same; the work is begun anew, for a process that stands
    still in silence is worse than one that tries again.

    Args:
        work: what to do; where it returns, it is done.
        name: of the task, and for the message.
        again: after how many seconds it is begun anew.
    """
    task = asyncio.create_task(_keep_on(work, name, again), name=name)
    try:
        yield
    finally:
        await end(task)


async def _keep_on(work: Work, name: str, again: float) -> None:
    said = ""
    while True:
        try:
            return await work()
        except Exception as error:
            if said != repr(error):
                said = repr(error)
                logger.exception("%s: failed, and is tried again every %g s", name, again)
        await asyncio.sleep(again)


async def first_of(event: asyncio.Event, task: asyncio.Task[Result]) -> None:
    """Wait until `event` is set or `task` is done, whichever is first."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(waiting)


async def end(task: asyncio.Task[Result]) -> None:
    """Cancel `task`, and wait until it has ended; what it raises is left in it."""
    task.cancel()
    await asyncio.wait({task})
