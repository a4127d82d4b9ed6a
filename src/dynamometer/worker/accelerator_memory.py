"""The memory of this machine's accelerators: a restarted engine needs what its former run held."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from dynamometer.engines import accelerators
from dynamometer.process.blocking import BlockingCalls, HangError

logger = logging.getLogger(__name__)

# A driver frees the memory of a killed process within some seconds.
WAIT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.5
# Drivers and other programs use a little more or less memory from one moment to the next.
_TOLERANCE_BYTES: Final = 256 << 20


class AcceleratorMemory:
    """The memory in use before an engine started, and again after its end; nothing on a CPU."""

    def __init__(self) -> None:
        self._before: Mapping[str, int] = {}
        self._reading: BlockingCalls[Mapping[str, int]] = BlockingCalls(
            "the accelerators' memory", deadline=accelerators.QUERY_SECONDS + 1
        )

    async def measure(self) -> None:
        """Record the memory in use before a start of the engine."""
        self._before = await self._in_use()

    async def wait_until_free(self) -> bool:
        """Wait until no device has more memory in use than before the start.

        The log names the wait when it begins, and again if it ends at `WAIT_SECONDS` because
        another program may use the memory.

        Returns:
            Whether there was a wait.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + WAIT_SECONDS
        waited = False
        while held := self._held(await self._in_use()):
            if not waited:
                logger.info(
                    "the restart waits up to %.0f s until %d MiB of the accelerators' memory, in "
                    "use since the engine was started, are free",
                    WAIT_SECONDS,
                    held >> 20,
                )
            waited = True
            if clock() >= deadline:
                logger.warning(
                    "%d MiB of the accelerators' memory are still in use %.0f s after the end of "
                    "the engine, by the engine or by another program",
                    held >> 20,
                    WAIT_SECONDS,
                )
                break
            await asyncio.sleep(_POLL_SECONDS)
        return waited

    def _held(self, in_use: Mapping[str, int]) -> int:
        """Return the bytes in use now that were free before the start, or 0 within a tolerance."""
        more = (used - self._before.get(name, used) for name, used in in_use.items())
        return sum(held for held in more if held > _TOLERANCE_BYTES)

    async def _in_use(self) -> Mapping[str, int]:
        try:
            return await self._reading.run(accelerators.memory_in_use)
        except HangError as error:
            logger.warning("%s; a restart does not wait until the memory is free", error)
            return {}
