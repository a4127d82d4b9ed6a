"""The follower: a task that updates a fleet from discovery."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from dynamometer.errors import DiscoveryError
from dynamometer.process.tasks import restarting
from dynamometer.runtime.discovery.interface import Discovery
from dynamometer.runtime.fleet import Fleet

logger = logging.getLogger(__name__)

# A limit for the readings of discovery: each request for an unknown model calls `refresh`.
_REFRESH_SECONDS: Final = 0.005


class Follower:
    """Watches a discovery, and updates a fleet.

    Attributes:
        fleet: the processes that discovery shows.
    """

    def __init__(self, discovery: Discovery, fleet: Fleet) -> None:
        """Store the arguments; `following` starts the watch."""
        fleet.fault = lambda: discovery.fault
        self.fleet = fleet
        self._discovery = discovery
        self._read_at = float("-inf")

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Update the fleet after each change in discovery while the context is open."""
        async with restarting(self._follow, name="discovery"):
            yield

    async def _follow(self) -> None:
        async for records in self._discovery.watch():
            self.fleet.update(records)

    async def refresh(self) -> None:
        """Read discovery and update the fleet now; keep the fleet if discovery cannot be read."""
        started = time.monotonic()
        if started - self._read_at < _REFRESH_SECONDS:
            return
        try:
            records = await self._discovery.records()
        except DiscoveryError as error:
            logger.debug("%s", error)  # the discovery logs the error once
        else:
            self._read_at = started
            self.fleet.update(records)
