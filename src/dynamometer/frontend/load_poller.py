"""A background task that reads the load of workers, for the router mode `least-loaded`.

The router counts the requests of its own frontend. The requests of others (another frontend, or a
client of the engine itself) are part of the load on the worker's page, which is read once a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlencode

import aiohttp

from dynamometer.errors import ExpositionError
from dynamometer.exposition.parser import parse
from dynamometer.frontend.routing import Router
from dynamometer.metrics.remote_page import RemotePageError, fetch_page
from dynamometer.names import engine_load
from dynamometer.process.tasks import restarting
from dynamometer.runtime.record import Record

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 1.0
DEADLINE_SECONDS: Final = 1.0
# An older report is dropped, because the requests of others may have ended since.
STALE_SECONDS: Final = 5.0
_LARGEST_PAGE_BYTES: Final = 64 << 10
_GAUGES: Final = (engine_load.RUNNING_REQUESTS, engine_load.QUEUED_REQUESTS)
_QUERY: Final = urlencode([("name[]", name) for name in _GAUGES])


class LoadPoller:
    """Reads the load of each ready worker, and reports the requests of others to a router."""

    def __init__(
        self,
        router: Router,
        session: aiohttp.ClientSession,
        *,
        interval: float = INTERVAL_SECONDS,
        deadline: float = DEADLINE_SECONDS,
        stale: float = STALE_SECONDS,
    ) -> None:
        """Store the arguments; `running` starts the task.

        Args:
            router: the router that has the workers and receives the reports.
            session: the HTTP session for requests to workers.
            interval: the time between two polls, in seconds.
            deadline: the longest time to wait for a page, in seconds.
            stale: the time after which a report is dropped, in seconds.
        """
        self._router = router
        self._session = session
        self._interval = interval
        self._deadline = deadline
        self._stale = stale
        self._reported: dict[int, float] = {}
        self._failing: set[int] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll repeatedly while the context is open."""
        async with restarting(self._run, name="load poller", retry=self._interval):
            yield

    async def _run(self) -> None:
        while True:
            await self.poll()
            await asyncio.sleep(self._interval)

    async def poll(self) -> None:
        """Read the load of each ready worker once; all workers are read at the same time."""
        workers = self._router.fleet.ready
        ready = {worker.id for worker in workers}
        self._failing &= ready
        self._reported = {id_: at for id_, at in self._reported.items() if id_ in ready}
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(self._poll_worker(worker))

    async def _poll_worker(self, worker: Record) -> None:
        before = self._router.in_flight(worker.id)
        try:
            load = await self._fetch_load(worker)
        except (RemotePageError, ExpositionError, ValueError) as error:
            self._record_error(worker, str(error))
            return
        # Own requests that started or ended during the poll may be part of the load, so the larger
        # count is subtracted.
        own = max(before, self._router.in_flight(worker.id))
        self._router.report(worker.id, max(0.0, load - own))
        self._reported[worker.id] = time.monotonic()
        self._failing.discard(worker.id)

    async def _fetch_load(self, worker: Record) -> float:
        """Return the number of running and queued requests of a worker's engine.

        Raises:
            ValueError: The worker's page does not have a valid load.
            RemotePageError, ExpositionError: The page cannot be read.
        """
        if worker.page_url is None:
            raise ValueError("the worker has no page")
        page = await fetch_page(
            self._session,
            f"{worker.page_url}?{_QUERY}",
            limit=_LARGEST_PAGE_BYTES,
            deadline=self._deadline,
        )
        loads = {
            family.name: sum(float(sample.value) for sample in family.samples)
            for family in parse(page.body, page.content_type).families
            if family.name in _GAUGES
        }
        if engine_load.RUNNING_REQUESTS not in loads:
            raise ValueError("the worker's page has no load signals")
        load = sum(loads.values())
        if not 0 <= load < float("inf"):
            raise ValueError(f"{load} is not a valid load")
        return load

    def _record_error(self, worker: Record, reason: str) -> None:
        """Log the first error of a worker, and drop its last report when the report is stale."""
        if worker.id not in self._failing:
            self._failing.add(worker.id)
            logger.debug(
                "the load of instance %016x is unknown (%s): only requests from this frontend "
                "are counted", worker.id, reason,
            )  # fmt: skip
        if time.monotonic() - self._reported.get(worker.id, float("-inf")) > self._stale:
            self._reported.pop(worker.id, None)
            self._router.report(worker.id, None)
