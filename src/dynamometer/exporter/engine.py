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
from pathlib import Path
from typing import Final

import aiohttp
import psutil

from dynamometer.exporter import finder, processes
from dynamometer.exporter.finder import Running
from dynamometer.exporter.health import Health, HealthCheck
from dynamometer.exporter.own_page import OwnPage
from dynamometer.exporter.source import FilesSource
from dynamometer.exporter.targets import Target
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.http_source import HttpSource
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import labels
from dynamometer.runtime.record import State

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
# Without processes and URL: files are looked at so often, and those that have not changed for so
# long are a dead engine's.
_READ_SECONDS: Final = 2.0
_GROWTH_SECONDS: Final = 60.0
# So many looks in a row at a port where nobody listens, or that cannot be reached at all (a
# container's name or address goes with it): it has ended.
_MISSES_GONE: Final = 2
_MISSES: Final = 5
_NOT_ASKED: Final = Health(False, "not asked yet")


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
        self._model = options.model or (target.running.model if target.running else "")
        self._check = self._new_check()
        self._files: FilesSource | None = None
        self._own_page: OwnPage | None = None
        self._told: set[str] = set()
        self._readable = False
        self._read = float("-inf")
        self._found = False  # all of its files
        self._gone = False
        self._ended = ""
        self._survivors: set[str] = set()
        self._port = _NOT_ASKED
        self._missed = 0
        self._answer = _NOT_ASKED
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
        return self._target.running is not None and self._gone

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
        self._gone = self._found = False
        self._begin_again(f"started again, process {running.what}")
        self._check = self._new_check()

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
            self._judge()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        if self._running is not None:
            await self._look_at_first(self._running)
        elif self._target.directories:
            self._follow(self._target.directories)
        if self._files is not None:
            await self._look_at_writers(self._files)
        if self._check is not None and (self.state is not State.READY or not self._visible):
            await self._look_at_port(self._check)

    @property
    def _visible(self) -> bool:
        """Whether its processes can be seen."""
        return self._running is not None or (
            self._files is not None and self._files.writers.visible
        )

    async def _look_at_first(self, running: Running) -> None:
        if self._gone:
            return
        if not processes.alive(running.process):
            self._gone = True
            self._end(f"process {running.what} has ended")
            if self._files is not None:
                await asyncio.to_thread(self._files.retire)
        elif not self._found:
            ready = self.state is State.READY  # its processes are all there, with their files
            await asyncio.to_thread(self._find_files)
            self._found = ready

    def _find_files(self) -> None:
        found = finder.files_of(self._find_members())
        if found.denied:
            self._tell_denied(f"process {found.denied[0].pid}", processes.user(found.denied[0]))
        elif self.state is State.READY and not found.directories:
            self._tell_once(f"{self.name}: its processes have no multiprocess files")
        directories = self._target.directories or found.directories
        if directories:
            self._follow(directories)

    def _find_members(self) -> Sequence[psutil.Process]:
        return processes.family(self._running.process) if self._running is not None else ()

    def _follow(self, directories: Sequence[str]) -> None:
        readable = [path for path in directories if os.access(path, os.R_OK | os.X_OK)]
        self._readable = bool(readable)
        for path in directories:
            if path not in readable and os.path.exists(path):  # noqa: PTH110  # never raises
                self._tell_denied(path, _owner(path))
        if self._files is None:
            self._files = FilesSource(
                self.name,
                constant=self._labels(),
                prefixes=self._options.prefixes,
                max_series=self._options.max_series,
                members=self._find_members,
            )
            self._page.add(self._files)
        wanted = tuple(readable) or tuple(directories)
        if wanted != tuple(self._files.paths):
            for path in wanted:
                logger.info("%s: its files are read in %s", self.name, path)
            self._files.follow(wanted)

    async def _look_at_writers(self, files: FilesSource) -> None:
        writers = files.writers
        ended = writers.ended()
        if ended:
            await asyncio.to_thread(files.retire, ended)
            if writers.sglang or not writers.alive:
                names = ", ".join(sorted(writer.what for writer in ended.values()))
                verb = "process {} has" if len(ended) == 1 else "processes {} have"
                self._end(f"{verb.format(names)} ended")
                self._survivors = set(writers.alive)
        if self._running is not None or not (self._ended or self._by_growth):
            return
        # Given by its directory: it is back when another process writes there, or any at all.
        if time.monotonic() - self._read >= _READ_SECONDS:
            self._read = time.monotonic()
            await asyncio.to_thread(files.families)
        if self._ended and writers.alive.keys() - self._survivors:
            self._begin_again()
        self._survivors &= writers.alive.keys()
        if self._by_growth:
            await self._look_at_growth(files)

    @property
    def _by_growth(self) -> bool:
        """Whether nothing tells its life but its files."""
        return self._check is None and not self._visible

    async def _look_at_growth(self, files: FilesSource) -> None:
        idle = time.monotonic() - files.changed
        if files.writers.growing and idle < _GROWTH_SECONDS:
            self._begin_again()
        elif files.changed:
            self._end(
                f"no process that writes in {', '.join(files.paths)} is to be seen, and its files "
                "do not change; --engine-url tells an idle engine elsewhere from one that has ended"
            )
            if files.writers.growing:
                await asyncio.to_thread(files.retire)

    async def _look_at_port(self, check: HealthCheck) -> None:
        port = self._port = await check.port()
        self._missed = 0 if port.well else self._missed + 1
        if self._visible:
            return
        if port.well and self._ended:
            self._begin_again()
        elif self._missed >= (_MISSES_GONE if port.gone else _MISSES) and not self._ended:
            self._end(port.reason)
            if self._files is not None:
                await asyncio.to_thread(self._files.retire)

    def _end(self, reason: str) -> None:
        """It has ended: its totals stay, its gauges go. The first reason is the cause."""
        if not self._ended:
            self._ended = reason
            if self._own_page is not None:
                self._own_page.source.note_end()
        self._judge()

    def _begin_again(self, how: str = "there is life in it again") -> None:
        if self._ended:
            self._ended = ""
            self._was_ready = False
            self._answer = _NOT_ASKED
            logger.info("%s: %s", self.name, how)

    # Its health.

    async def _watch_answers(self) -> None:
        asked = float("-inf")
        while True:
            due = self.state is not State.READY or (
                self._options.health_interval
                and time.monotonic() - asked >= self._options.health_interval
            )
            if self._check is not None and not self._ended and due:
                asked = time.monotonic()
                self._answer = await self._check.answer()
                self._was_ready = self._was_ready or self._answer.well
                self._judge()
            await asyncio.sleep(LOOK_SECONDS)

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
            fault = self._port if not (self._visible or self._port.well) else self._answer
            if fault.well:
                return State.READY, ""
            return (State.FAILED if self._was_ready else State.STARTING), fault.reason
        if self._files is None or not self._files.changed:
            return State.STARTING, "there is nothing to read yet"
        return State.READY, ""

    # Its own page.

    async def _watch_page(self) -> None:
        while True:
            needed = self._needs_page()
            answers = not self._ended and (self._port.well or self._answer.well)
            if self.url is not None and answers and needed is not False:
                self._own_page = self._own_page or await self._new_own_page(self.url)
                await self._own_page.look(needed, self._files)
            await asyncio.sleep(LOOK_SECONDS)

    def _needs_page(self) -> bool | None:
        """Whether its files are not enough; None where that is to be found out."""
        if self._files is None and self._running is not None and not self._was_ready:
            return False  # they may come yet
        if self._files is None or not self._readable:
            return True
        return self._running.page_has_more if self._running is not None else None

    async def _new_own_page(self, url: str) -> OwnPage:
        if not self._model and self._check is not None:
            self._model = await self._check.model()
        source = HttpSource(
            f"{self.name}_http",
            self._target.page_url or f"{url}/metrics",
            session=self._session,
            owner=self.name,
            prefixes=self._options.prefixes,
            labels=self._labels(),
            totals=Totals(),
        )
        return OwnPage(source, self._page)

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


def _owner(path: str) -> str:
    try:
        return Path(path).owner()
    except (KeyError, OSError):
        return "its owner"
