"""What workers say of their load: asked in the background, where requests go to the least loaded.

A frontend knows its own requests at once, and those of others (another frontend, a client that asks
the engine itself) from the worker's page, about once a second.
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
from dynamometer.metrics.response_body import read_body
from dynamometer.names import engine_load
from dynamometer.process.tasks import restarting
from dynamometer.runtime.record import Record

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 1.0
DEADLINE_SECONDS: Final = 1.0
# Older reports count as none: by then the requests of others may all have ended.
STALE_SECONDS: Final = 5.0
_LARGEST_PAGE_BYTES: Final = 64 << 10
_GAUGES: Final = (engine_load.RUNNING_REQUESTS, engine_load.QUEUED_REQUESTS)
_QUERY: Final = urlencode([("name[]", name) for name in _GAUGES])
_PLAIN: Final = {"Accept-Encoding": "identity", "Accept": "text/plain;version=0.0.4"}


class LoadPoller:
    """Asks each ready worker for its load, and reports to a router what is not from here."""

    def __init__(
        self,
        router: Router,
        session: aiohttp.ClientSession,
        *,
        interval: float = INTERVAL_SECONDS,
        deadline: float = DEADLINE_SECONDS,
        stale: float = STALE_SECONDS,
    ) -> None:
        """Ask no worker yet.

        Args:
            router: has the workers, and takes the reports.
            session: to ask with.
            interval: between two questions, seconds.
            deadline: how long an answer may take, seconds.
            stale: how long a report counts, seconds.
        """
        self._router = router
        self._session = session
        self._interval = interval
        self._deadline = deadline
        self._stale = stale
        self._reported: dict[int, float] = {}
        self._told: set[int] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask again and again while the context is open."""
        async with restarting(self._run, name="load of the workers", retry=self._interval):
            yield

    async def _run(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(self._interval)

    async def ask(self) -> None:
        """Ask all workers once, at the same time; a worker that does not answer costs no other."""
        workers = self._router.fleet.ready
        ready = {worker.id for worker in workers}
        self._told &= ready
        self._reported = {id_: at for id_, at in self._reported.items() if id_ in ready}
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(self._ask(worker))

    async def _ask(self, worker: Record) -> None:
        before = self._router.in_flight(worker.id)
        try:
            load = await self._load(worker)
        except (aiohttp.ClientError, OSError, ValueError, ExpositionError) as error:
            self._missed(worker, str(error) or type(error).__name__)
            return
        # What began or ended meanwhile may be in it: never taken for somebody else's.
        own = max(before, self._router.in_flight(worker.id))
        self._router.report(worker.id, max(0.0, load - own))
        self._reported[worker.id] = time.monotonic()
        self._told.discard(worker.id)

    async def _load(self, worker: Record) -> float:
        """How many requests a worker's engine has.

        Raises:
            ValueError: it says nothing of it.
            aiohttp.ClientError, OSError, ExpositionError: it does not answer, or not so.
        """
        if worker.system_url is None:
            raise ValueError("it has no system server")
        async with asyncio.timeout(self._deadline):
            url = f"{worker.system_url}/metrics?{_QUERY}"
            async with self._session.get(
                url, headers=_PLAIN, allow_redirects=False, auto_decompress=False
            ) as answer:
                page = await read_body(answer, _LARGEST_PAGE_BYTES)
        if answer.status != 200:
            raise ValueError(f"it answers {answer.status}")
        loads = {
            family.name: sum(float(sample.value) for sample in family.samples)
            for family in parse(page).families
            if family.name in _GAUGES
        }
        if engine_load.RUNNING_REQUESTS not in loads:
            raise ValueError("its engine says nothing of it")
        load = sum(loads.values())
        if not 0 <= load < float("inf"):
            raise ValueError(f"its engine says {load}")
        return load

    def _missed(self, worker: Record, why: str) -> None:
        """A worker did not say: its last report counts for a while, and then none."""
        if worker.id not in self._told:
            self._told.add(worker.id)
            logger.debug(
                "instance %016x: its load is not known, requests in flight from here alone "
                "count: %s", worker.id, why,
            )  # fmt: skip
        if time.monotonic() - self._reported.get(worker.id, float("-inf")) > self._stale:
            self._reported.pop(worker.id, None)
            self._router.report(worker.id, 0.0)
