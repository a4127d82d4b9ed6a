"""One engine on the page: found, watched, lost, found again.

    starting ──▶ ready ◀──▶ failed: it ended, or it does not answer

What tells its life, in the order of trust: its processes, where they can be seen; its URL; and
where there is neither, whether its files grow.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import psutil

from dynamometer.exporter import finder, processes
from dynamometer.exporter.finder import Running
from dynamometer.exporter.health import Health, HealthCheck
from dynamometer.exporter.source import FilesSource
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.http_source import HttpSource
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import labels
from dynamometer.runtime.record import State

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 30.0
# Without processes and URL: files that have not changed for so long are a dead engine's.
_GROWTH_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the user has said of an engine.

    Attributes:
        name: what it is called on the page's own families and in the log.
        running: its first process, where it was found or its pid was given.
        directories: of its multiprocess files, where they were given.
        url: where it answers, without a path, where that was given.
        page_url: of its own `/metrics`.
    """

    name: str
    running: Running | None = None
    directories: tuple[str, ...] = ()
    url: str | None = None
    page_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What holds for all engines.

    Attributes:
        constant: labels for every series that has not its own.
        model: what `model` is where the user says so.
        prefixes: families whose name begins with one of them; none: all.
        max_series: how many series of an engine's files are shown.
        health_path: what is asked for the engine's health; empty: only its port is looked at.
        health_interval: seconds between two such questions.
        health_deadline: how long an answer may take, seconds.
    """

    constant: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    prefixes: tuple[str, ...] = ()
    max_series: int
    health_path: str
    health_interval: float
    health_deadline: float


class ExportedEngine:
    """See the module."""

    def __init__(
        self,
        target: Target,
        options: EngineOptions,
        page: MetricsPage,
        session: aiohttp.ClientSession,
    ) -> None:
        """Nothing is looked at yet; see `watch`."""
        self.name = target.name
        self._target = target
        self._options = options
        self._page = page
        self._session = session
        self._running = target.running
        self._members: Sequence[psutil.Process] = ()
        self._model = options.model or (target.running.model if target.running else "")
        self._check = self._new_check()
        self._files: FilesSource | None = None
        self._fetched: HttpSource | None = None
        self._page_has_more = target.running.page_has_more if target.running else None
        self._probed = float("-inf")
        self._told: set[str] = set()
        self._ended = ""  # why it is gone, as far as its processes tell
        self._port = Health(False, "not asked yet")
        self._answer = Health(False, "not asked yet")
        self._was_ready = False
        self._state = (State.STARTING, "")
        self.since = time.time()

    # What others see.

    @property
    def state(self) -> State:
        """Whether it is well."""
        return self._state[0]

    @property
    def reason(self) -> str:
        """Why not."""
        return self._state[1]

    @property
    def lost(self) -> bool:
        """Whether a new first process is wanted, to go on with."""
        return self._target.running is not None and bool(self._ended)

    @property
    def searched_name(self) -> str:
        """What `finder` will call it when it is started again; empty: it cannot be found."""
        return self._target.running.name if self._target.running is not None else ""

    async def watch(self) -> None:
        """Watch it for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_processes())
            group.create_task(self._watch_answers())
            group.create_task(self._watch_page())

    def adopt(self, running: Running) -> None:
        """Go on with an engine that was started again."""
        self._running = running
        self._page_has_more = running.page_has_more
        self._members = ()
        self._ended = ""
        self._answer = Health(False, "not asked yet")
        self._was_ready = False
        self._check = self._new_check()
        logger.info("%s: started again, process %d", self.name, running.process.pid)

    def close(self) -> None:
        """Close its files."""
        if self._files is not None:
            self._files.close()

    @property
    def url(self) -> str | None:
        """Where it answers."""
        if self._target.url is not None:
            return self._target.url
        return self._running.url if self._running is not None else None

    def _new_check(self) -> HealthCheck | None:
        if self.url is None:
            return None
        options = self._options
        return HealthCheck(
            self._session, self.url, options.health_path, deadline=options.health_deadline
        )

    # Its processes and files.

    async def _watch_processes(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        if self._running is not None and not self._ended:
            if not processes.alive(self._running.process):
                await self._end(f"process {self._running.process.pid} has ended")
            elif self._files is None or not self._files.paths:
                await asyncio.to_thread(self._find_files)
        if self._target.directories:
            self._follow(self._target.directories)
        if self._files is not None:
            await self._look_at_writers(self._files)
        if self._check is not None and (self.state is not State.READY or not self._visible):
            port = await self._check.port()
            if port.gone and self._port.gone and not self._visible and not self._ended:
                await self._end(port.reason)
            elif port.well and self._ended and not self._visible:
                self._ended = ""
            self._port = port
        await self._look_at_growth()
        self._judge()

    @property
    def _visible(self) -> bool:
        """Whether its processes can be seen."""
        return self._running is not None or (
            self._files is not None and self._files.writers.visible
        )

    def _find_files(self) -> None:
        assert self._running is not None
        self._members = processes.family(self._running.process)
        found = finder.files_of(self._members)
        if found.denied:
            self._tell_denied(f"process {found.denied[0].pid}", processes.user(found.denied[0]))
        if found.directories:
            self._follow(found.directories)
        elif self._was_ready and not found.denied:
            self._tell_once(f"{self.name}: its processes have no multiprocess files")

    def _find_members(self) -> Sequence[psutil.Process]:
        if self._running is not None:
            self._members = processes.family(self._running.process)
        return self._members

    def _follow(self, directories: Sequence[str]) -> None:
        readable = [path for path in directories if os.access(path, os.R_OK | os.X_OK)]
        for path in directories:
            if path not in readable and os.path.exists(path):  # noqa: PTH110  # no OSError
                self._tell_denied(path, _owner(path))
        if not readable and not self._target.directories:
            return
        if self._files is None:
            self._files = FilesSource(
                self.name,
                constant=self._labels(),
                prefixes=self._options.prefixes,
                max_series=self._options.max_series,
                members=self._find_members,
            )
            self._page.add(self._files)
        if tuple(readable) != tuple(self._files.paths):
            for path in readable:
                logger.info("%s: reading the files in %s", self.name, path)
            self._files.follow(readable or directories)

    async def _look_at_writers(self, files: FilesSource) -> None:
        ended = files.writers.ended()
        if ended:
            await asyncio.to_thread(files.retire, ended)
            names = ", ".join(sorted(processes.last_word(p) for p in ended.values()))
            sglang = files.writers.engine
            if (sglang or not files.writers.alive) and not self._ended:
                await self._end(f"process {names} has ended")
        elif self._ended and self._running is None and files.writers.visible:
            # Given by its directory: it is back when somebody writes there again.
            await asyncio.to_thread(files.families)
            if files.writers.alive and not files.writers.stale:
                self._ended = ""

    async def _look_at_growth(self) -> None:
        """Where nothing else tells its life."""
        files = self._files
        if files is None or self._check is not None or self._visible or not files.changed:
            return
        idle = time.monotonic() - files.changed
        if idle > _GROWTH_SECONDS and not self._ended:
            await self._end(
                f"nothing in {', '.join(files.paths)} has changed for {idle:.0f} s, and none of "
                "the processes that wrote there is to be seen; --engine-url would tell an idle "
                "engine from one that has ended"
            )
        elif idle < _GROWTH_SECONDS:
            self._ended = ""

    async def _end(self, reason: str) -> None:
        """It has ended: its totals stay, its gauges go."""
        self._ended = reason
        self._judge()
        if self._files is not None:
            await asyncio.to_thread(self._files.retire)
        if self._fetched is not None:
            self._fetched.note_restart()

    # Its health.

    async def _watch_answers(self) -> None:
        while True:
            if self._check is not None and not self._ended:
                self._answer = await self._check.answer()
                self._was_ready = self._was_ready or self._answer.well
                self._judge()
            ready = self.state is State.READY
            await asyncio.sleep(self._options.health_interval if ready else LOOK_SECONDS)

    def _judge(self) -> None:
        state, reason = self._judged()
        if state is not self._state[0]:
            self.since = time.time()
            if state is State.READY:
                logger.info("%s: ready", self.name)
            elif state is State.FAILED:
                logger.warning("%s: %s", self.name, reason)
        self._state = (state, reason)

    def _judged(self) -> tuple[State, str]:
        if self._ended:
            return State.FAILED, self._ended
        if self._check is not None:
            if self._answer.well and (self._visible or self._port.well):
                return State.READY, ""
            failed = self._port if not self._port.well and not self._visible else self._answer
            return (State.FAILED if self._was_ready else State.STARTING), failed.reason
        if self._files is None or not self._files.changed:
            return State.STARTING, "nothing was found to read yet"
        return State.READY, ""

    # Its own page.

    async def _watch_page(self) -> None:
        while True:
            interval = LOOK_SECONDS
            if self.url is not None and not self._ended and self._port_answers:
                source = self._fetched or await self._new_fetched()
                if await self._wants_page(source):
                    await source.fetch()
                    interval = 2.0
            await asyncio.sleep(interval)

    @property
    def _port_answers(self) -> bool:
        return self._port.well or self._answer.well

    async def _wants_page(self, source: HttpSource) -> bool:
        """Whether the engine's page has what its files have not, as far as can be told."""
        if self._fetched is not None:
            return True
        files = self._files
        wanted = files is None or not files.readable or bool(self._page_has_more)
        if files is None and self._running is not None and not self._was_ready:
            return False  # its files may come yet
        if not wanted and self._page_has_more is None and self._is_time_to_probe():
            await source.fetch()
            await asyncio.to_thread(files.families)
            wanted = bool(source.names() - files.names())
        if wanted:
            self._fetched = source
            self._page.add(source)
            logger.info("%s: its own page is fetched too: %s", self.name, source.url)
        return wanted

    def _is_time_to_probe(self) -> bool:
        now = time.monotonic()
        if now - self._probed < _PROBE_SECONDS:
            return False
        self._probed = now
        return True

    async def _new_fetched(self) -> HttpSource:
        if not self._model and self._check is not None:
            self._model = await self._check.model()
        return HttpSource(
            f"{self.name}_http",
            self._target.page_url or f"{self.url}/metrics",
            session=self._session,
            owner=self.name,
            prefixes=self._options.prefixes,
            labels=self._labels(),
            totals=Totals(),
        )

    def _labels(self) -> Mapping[str, str]:
        constant = self._options.constant
        if self._model and constant:
            return {**constant, labels.MODEL: self._model}
        return constant

    # Words that are said once.

    def _tell_denied(self, what: str, user: str) -> None:
        self._tell_once(
            f"{self.name}: no permission to read {what}: run the exporter as {user}, or as root"
            + ("; meanwhile its own page is fetched" if self.url else "")
        )

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("%s", message)
