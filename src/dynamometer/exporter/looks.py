"""The looks at one engine: each second, and each on its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from dynamometer.exporter import procfs
from dynamometer.process.blocking import HangError
from dynamometer.process.tasks import restarting

logger = logging.getLogger(__name__)

Look = Callable[[], Awaitable[None]]
LOOK_SECONDS: Final = 1.0


class Looks:
    """Repeated looks; one that hangs or fails stops none of the others.

    Attributes:
        faults: why a look has no result, by the name of what is looked at. Owned by the event loop.
    """

    def __init__(self, name: str) -> None:
        """Start nothing yet.

        Args:
            name: the engine's, for the log.
        """
        self.faults: dict[str, str] = {}
        self._name = name

    async def repeat(self, looks: Mapping[str, Look], done: Callable[[], None]) -> None:
        """Look each second until cancelled.

        Args:
            looks: by the name of what is looked at.
            done: called after each look.
        """
        async with AsyncExitStack() as stack:
            for what, look in looks.items():
                work = partial(self._repeat, what, look, done)
                await stack.enter_async_context(restarting(work, name=f"{self._name}: {what}"))
            await asyncio.Event().wait()

    async def _repeat(self, what: str, look: Look, done: Callable[[], None]) -> None:
        while True:
            try:
                await look()
            except HangError as error:
                self._note(what, str(error))
            except procfs.ERRORS as error:
                self._note(what, f"{what} cannot be looked at: {error}")
            else:
                if self.faults.pop(what, None):
                    logger.info("%s: %s can be looked at again", self._name, what)
            done()
            await asyncio.sleep(LOOK_SECONDS)

    def _note(self, what: str, fault: str) -> None:
        if self.faults.get(what) != fault:
            self.faults[what] = fault
            logger.warning("%s: %s", self._name, fault)
