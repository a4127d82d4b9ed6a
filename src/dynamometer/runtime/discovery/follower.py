"""The one owner of a discovery's watch: keeps a fleet current."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from dynamometer.errors import DiscoveryError
from dynamometer.process.tasks import keeping_on
from dynamometer.runtime.discovery.interface import Discovery
from dynamometer.runtime.fleet import Fleet

logger = logging.getLogger(__name__)

# Requests for names that are not known come at any rate; readings of discovery do not.
_REFRESH_SECONDS: Final = 0.005


class Follower:
    """Keeps `fleet` current with `discovery`.

    Attributes:
        fleet: what discovery shows.
    """

    def __init__(self, discovery: Discovery, fleet: Fleet) -> None:
        """Read nothing yet."""
        self.fleet = fleet
        self._discovery = discovery
        self._read_at = float("-inf")

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow discovery while the context is open."""
        async with keeping_on(self._follow, name="discovery"):
            yield

    async def _follow(self) -> None:
        async for records in self._discovery.watch():
            self.fleet.update(records)

    async def refresh(self) -> None:
        """Read discovery now; what was known stands where that fails."""
        begun = time.monotonic()
        if begun - self._read_at < _REFRESH_SECONDS:
            return
        try:
            records = await self._discovery.records()
        except DiscoveryError as error:
            logger.debug("%s", error)  # reported once by the discovery itself
        else:
            self._read_at = begun
            self.fleet.update(records)
