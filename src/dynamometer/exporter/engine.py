"""One engine on the page: found, watched, lost, found again.

    starting ──▶ ready ◀──▶ failed: it ended, or it does not answer

What tells its life, in the order of trust: its processes, where they can be seen; its URL; and
where there is neither, whether its files grow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import psutil

from dynamometer.engines.load_signals import EngineLoad
from dynamometer.exporter.finder import Running
from dynamometer.exporter.health import Health, HealthCheck
from dynamometer.exporter.own_page import OwnPage
from dynamometer.exporter.places import Places, Words
from dynamometer.exporter.source import FilesSource
from dynamometer.exporter.targets import Target
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.http_source import DEADLINE_SECONDS, HttpSource
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import labels
from dynamometer.process.children import alive
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
        page_deadline: how long the engine's own page may take, seconds.
    """

    constant: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    prefixes: tuple[str, ...] = ()
    max_series: int
    health_path: str
    health_interval: float
    health_deadline: float
    page_deadline: float = DEADLINE_SECONDS


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
        self._words = Words(target.name)
        self._places = Places(target, self._new_files, self._words)
        self._own_page: OwnPage | None = None
        self._load = EngineLoad(self.name, self._load_labels, complete=self._sources_known)
        if self._load.shown_by(options.prefixes):
            page.derive(self._load)
        self._read = float("-inf")
        self._found = False  # all of its files
        self._gone = False
        self._ended = ""
        self._survivors: set[str] = set()
        self._port = _NOT_ASKED
        self._missed = 0
        self._asked = float("-inf")
        self._answer = _NOT_ASKED
        self._was_ready = False
        self._ever_ready = False
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

    def forgettable(self, seconds: float) -> bool:
        """Whether it has ended so long ago, or had never begun to serve."""
        return self.lost and (not self._ever_ready or time.time() - self.since > seconds)

    @property
    def searched_name(self) -> str:
        """What `finder` will call it when it is started again; empty: it cannot be found."""
        return self._target.running.name if self._target.running is not None else ""

    @property
    def process(self) -> psutil.Process | None:
        """Its first process, where that is known."""
        return self._running.process if self._running is not None else None

    async def watch(self) -> None:
        """Watch it for ever."""
        async with asyncio.TaskGroup() as group:
            for look in (self._look, self._ask, self._look_at_page):
                group.create_task(self._repeat(look))

    async def _repeat(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look each second. What nobody expected of one engine costs no other."""
        while True:
            try:
                await look()
            except Exception as error:
                self._words.once(f"it cannot be looked at: {error!r}")
                logger.debug("%s", self.name, exc_info=True)
            await asyncio.sleep(LOOK_SECONDS)

    def adopt(self, running: Running) -> None:
        """Go on with an engine that was started again."""
        self._running = running
        self._gone = self._found = self._places.searched = False
        self._begin_again(f"started again, process {running.what}")
        self._check = self._new_check()

    @property
    def _files(self) -> FilesSource | None:
        return self._places.files

    def _new_files(self, members: Callable[[], Sequence[psutil.Process]]) -> FilesSource:
        files = FilesSource(
            self.name,
            constant=self._labels(),
            prefixes=self._options.prefixes,
            max_series=self._options.max_series,
            members=members,
        )
        self._page.add(files)
        return files

    def leave(self) -> None:
        """Take it off the page."""
        self._page.remove(self._load)
        if self._own_page is not None:
            self._page.remove(self._own_page.source)
        if self._files is not None:
            self._page.remove(self._files)
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

    async def _look(self) -> None:
        if self._running is not None:
            await self._look_at_first(self._running)
        elif self._target.directories:
            self._places.follow(self._target.directories)
        if self._files is not None:
            await self._look_at_writers(self._files)
        self._judge()
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
        if not alive(running.process):
            self._gone = True
            self._end(f"process {running.what} has ended")
            if self._files is not None:
                await asyncio.to_thread(self._files.retire)
        elif not self._found:
            ready = self.state is State.READY  # its processes are all there, with their files
            await asyncio.to_thread(self._places.find, running)
            self._found = ready

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
        waited_for = not files.changed or (
            self._running is None and bool(self._ended or self._by_growth)
        )
        if waited_for and time.monotonic() - self._read >= _READ_SECONDS:
            self._read = time.monotonic()
            await asyncio.to_thread(files.families)
        if self._running is not None:
            return
        # Given by its directory: it is back when another process writes there, or any at all.
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

    async def _ask(self) -> None:
        interval = self._options.health_interval
        due = not self._answer.well or (interval and time.monotonic() - self._asked >= interval)
        if self._check is not None and not self._ended and due:
            self._asked = time.monotonic()
            self._answer = await self._check.answer()
            self._judge()
            self._was_ready = self._was_ready or self.state is State.READY
            self._ever_ready = self._ever_ready or self._was_ready

    def _judge(self) -> None:
        state, reason = self._judged()
        if state is not self._state[0]:
            self.since = time.time()
        if state is State.READY and self.state is not State.READY:
            logger.info("%s: ready", self.name)
        elif state is State.FAILED and (self._ended or self.state is not State.FAILED):
            self._words.changed(reason)
        self._state = (state, reason)

    def _judged(self) -> tuple[State, str]:
        if self._ended:
            return State.FAILED, self._ended
        bad = State.FAILED if self._was_ready else State.STARTING
        if self._running is not None and not self._places.searched:
            return bad, self._places.lack
        if self._check is not None:
            fault = self._port if not (self._visible or self._port.well) else self._answer
            if not fault.well:
                return bad, fault.reason
            page = self._own_page.source.fault if self._own_page and self._files is None else ""
            return (bad, page) if page else (State.READY, "")
        if self._files is None or not self._files.changed:
            return State.STARTING, self._places.lack
        return State.READY, ""

    # Its own page.

    async def _look_at_page(self) -> None:
        needed = self._needs_page()
        answers = not self._ended and (self._port.well or self._answer.well)
        if self.url is not None and answers and needed is not False:
            self._own_page = self._own_page or await self._new_own_page(self.url)
            await self._own_page.look(needed, self._files)

    def _needs_page(self) -> bool | None:
        """Whether its files are not enough; None where that is to be found out."""
        found = self._found or self._running is None
        if self._files is None or not self._places.readable or not self._files.changed:
            return found  # they may come yet
        return self._running.page_has_more if self._running is not None else None

    async def _new_own_page(self, url: str) -> OwnPage:
        if not self._model and self._files is not None:
            self._model = self._files.model  # one engine's series have one label
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
            deadline=self._options.page_deadline,
        )
        return OwnPage(source, self._page)

    def _labels(self) -> Mapping[str, str]:
        constant = self._options.constant
        if self._model and constant:
            return {**constant, labels.MODEL: self._model}
        return constant

    # Its load.

    def _load_labels(self) -> Mapping[str, str]:
        """As its series', and never none: engines would have the same series."""
        own = self._labels() or {labels.ENGINE: self.name}
        model = self._files.model if self._files is not None else ""
        return {labels.MODEL: model, **own} if model else own

    def _sources_known(self) -> bool:
        if self.url is None or self._needs_page() is False:
            return True
        return self._own_page is not None and self._own_page.known
