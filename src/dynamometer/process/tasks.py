"""Tasks beside what a process does: each owned by somebody, who awaits its end."""

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
AGAIN_SECONDS: Final = 1.0
# Work that went on for so long was well: its next fault is a new one.
WELL_SECONDS: Final = 60.0


@asynccontextmanager
async def restarting(work: Work, *, name: str, again: float = AGAIN_SECONDS) -> AsyncIterator[None]:
    """Keep `work` going while the context is open, and none of it afterwards.

    What it raises is a fault of ours, which it was not written to meet. It is said, with its
    traceback, and said again where it comes from another place, or after a while in which all was
    well. The work is begun anew: a process that stands still in silence is worse than one that
    tries again.

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
    said: tuple[str, int | None] | None = None
    while True:
        begun = time.monotonic()
        try:
            return await work()
        except (Exception, asyncio.CancelledError) as error:
            if _asked_to_end():
                raise
            if time.monotonic() - begun > WELL_SECONDS:
                said = None
            place = _place(error)
            if said != place:
                said = place
                logger.exception("%s: failed, and is tried again every %g s", name, again)
        await asyncio.sleep(again)


def _asked_to_end() -> bool:
    """Whether this task is cancelled, and not something that it has waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _place(error: BaseException) -> tuple[str, int | None]:
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
    """Cancel `task`, and wait until it has ended; what it raises is left in it."""
    task.cancel()
    await asyncio.wait({task})
