"""One engine on the page: found, watched, lost, found again.

    starting ──▶ ready ◀──▶ failed: it ended, or it does not answer

What tells its life, in the order of trust: its processes, where they can be seen; its URL; and
where there is neither, whether its files grow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import aiohttp
import psutil

from dynamometer.engines import kinds
from dynamometer.exporter import locations
from dynamometer.exporter.files_source import FilesSource, Sight
from dynamometer.exporter.finder import Running
from dynamometer.exporter.health import Health, HealthCheck
from dynamometer.exporter.locations import FileLocations, Words
from dynamometer.exporter.looks import Looks
from dynamometer.exporter.options import EngineOptions
from dynamometer.exporter.page_fetcher import PageFetcher
from dynamometer.exporter.targets import Target
from dynamometer.exporter.writers import Life
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.http_source import HttpSource
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import labels
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.children import alive
from dynamometer.runtime.record import State

logger = logging.getLogger(__name__)

# So many looks in a row at a port where nobody listens, or that cannot be reached at all (a
# container's name or address goes with it): it has ended.
_MISSES_GONE: Final = 2
_MISSES: Final = 5
_NOT_ASKED: Final = Health(False, "not asked yet")


class ObservedEngine:
    """See the module.

    All of its state belongs to the event loop. Threads of `BlockingCalls` return values to the
    loop; other threads call `_load_labels`, `_sources_known` and `_members`, which only read.
    """

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
        self._places = FileLocations()
        self._files: FilesSource | None = None
        self._sight = Sight()
        self._looks = Looks(self.name)
        self._living: BlockingCalls[bool] = BlockingCalls("processes")
        self._finding: BlockingCalls[FileLocations] = BlockingCalls("directories of the files")
        self._reading: BlockingCalls[Sight] = BlockingCalls("files")
        self._fetcher: PageFetcher | None = None
        kind = kinds.find(target.running.engine if target.running else "") or kinds.DEFAULT
        self._load = kind.load_signals(self.name, self._load_labels, complete=self._sources_known)
        if self._load.shown_by(options.prefixes):
            page.derive(self._load)
        self._looked = False  # for its files, once; the next one, all of them found
        self._found = False
        self._gone = False
        self._ended = ""
        self._closed = False  # nobody listened at its URL since it ended
        self._survivors: frozenset[str] = frozenset()
        self._port = _NOT_ASKED
        self._missed = 0
        self._asked = float("-inf")
        self._answer = _NOT_ASKED
        self._was_ready = False
        self._ever_ready = False
        self._state = (State.STARTING, "")
        self.since = time.time()

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
        """Watch it until cancelled."""
        looks = {
            "processes": self._look_at_first,
            "files": self._look_at_files,
            "port": self._look_at_port,
            "health": self._ask,
            "page": self._look_at_page,
        }
        await self._looks.repeat(looks, self._judge)

    def adopt(self, running: Running) -> None:
        """Go on with an engine that was started again."""
        self._running = running
        self._gone = self._found = self._looked = False
        self._begin_again(f"started again, process {running.what}")
        self._check = self._new_check()

    async def leave(self) -> None:
        """Take it off the page. Files that hang are left to the end of the process."""
        self._page.remove(self._load)
        if self._fetcher is not None:
            self._page.remove(self._fetcher.source)
        if self._files is not None:
            self._page.remove(self._files)
            closing: BlockingCalls[None] = BlockingCalls("closing", deadline=1.0)
            with suppress(HangError):
                await closing.run(self._files.close)

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

    @property
    def _visible(self) -> bool:
        """Whether its processes can be seen."""
        seen = bool(self._sight.alive) and "files" not in self._looks.faults
        return self._running is not None or seen

    @property
    def _life(self) -> Life:
        """What its writers are to be taken for that cannot be seen."""
        if self._running is not None:
            return Life.ENDED if self._ended else Life.LIVES
        if self._check is None:
            return Life.UNKNOWN
        return Life.UNREACHABLE if self._ended else Life.LIVES

    async def _look_at_first(self) -> None:
        running = self._running
        if running is None or self._gone:
            return
        lives = await self._living.run(partial(alive, running.process))
        if not lives and running is self._running:
            self._gone = True
            self._end(f"process {running.what} has ended")

    async def _look_at_files(self) -> None:
        if not self._gone:
            await self._look_for_places()
        if self._files is not None:
            waiting = self._running is None and (bool(self._ended) or self._by_growth)
            paths = self._places.directories
            look = partial(self._files.look, paths, waiting=waiting)
            self._sight = await self._reading.run(look)
            self._look_at_writers(self._sight, ", ".join(paths))
        self._looked = self._places.running is self._running

    async def _look_for_places(self) -> None:
        running = self._running
        if self._found or (running is None and not self._target.directories):
            return
        # Where it is ready its processes are all there, with their files.
        last = running is not None and self.state is State.READY
        found = await self._finding.run(partial(locations.look, self._target, running))
        if found.running is not self._running:
            return
        self._found = last
        for text in found.warnings:
            self._words.once(text)
        if found.directories and found.directories != self._places.directories:
            for path in found.readable:
                logger.info("%s: reading its files in %s", self.name, path)
        self._places = replace(found, directories=found.directories or self._places.directories)
        if self._files is None and found.directories:
            self._files = self._new_files()

    def _new_files(self) -> FilesSource:
        files = FilesSource(
            self.name,
            constant=self._labels(),
            model_label=self._options.model_label,
            prefixes=self._options.prefixes,
            max_series=self._options.max_series,
            members=self._members,
        )
        files.life = self._life
        self._page.add(files)
        return files

    def _members(self) -> Sequence[psutil.Process]:
        return locations.members(self._running)

    def _look_at_writers(self, sight: Sight, paths: str) -> None:
        if sight.ended and (sight.ends_as_a_whole or not sight.alive):
            verb = "process {} has" if len(sight.ended) == 1 else "processes {} have"
            self._end(f"{verb.format(', '.join(sight.ended))} ended")
            self._survivors = sight.alive
        if self._running is not None:
            return
        # Given by its directory: it is back when another process writes there, or any at all.
        if self._ended and sight.alive - self._survivors:
            self._begin_again()
        self._survivors &= sight.alive
        if self._by_growth and sight.growing:
            self._begin_again()
        elif self._by_growth and sight.changed:
            self._end(
                f"no process that writes in {paths} is to be seen, and its files "
                "do not change; --engine-url tells an idle engine elsewhere from one that has ended"
            )

    @property
    def _by_growth(self) -> bool:
        """Whether nothing tells its life but its files."""
        return self._check is None and not self._visible

    async def _look_at_port(self) -> None:
        check = self._check
        if check is None or (
            self.state is State.READY and self._visible and not self._looks.faults
        ):
            return
        port = await check.port()
        if check is not self._check:
            return
        self._port = port
        self._missed = 0 if port.well else self._missed + 1
        self._closed = self._closed or not port.well
        if self._visible:
            return
        if port.well and self._ended and self._closed:
            self._begin_again()
        elif self._missed >= (_MISSES_GONE if port.gone else _MISSES) and not self._ended:
            self._end(port.reason)
            self._closed = True

    def _end(self, reason: str) -> None:
        """It has ended: its totals stay, its gauges go. The first reason is the cause."""
        if not self._ended:
            self._ended = reason
            self._closed = False
            if self._fetcher is not None:
                self._fetcher.source.note_end()
        self._judge()

    def _begin_again(self, how: str = "there is life in it again") -> None:
        if self._ended:
            self._ended = ""
            self._was_ready = False
            self._answer = _NOT_ASKED
            logger.info("%s: %s", self.name, how)

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
        if self._files is not None:
            self._files.life = self._life
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
        faults = self._looks.faults
        unknown = faults.get("processes") or faults.get("files") or ""
        if not self._looked and not (unknown and self._check):
            return bad, unknown or self._places.lack
        if self._check is not None:
            fault = self._port if not (self._visible or self._port.well) else self._answer
            if not fault.well:
                return bad, fault.reason
            page = self._fetcher.source.fault if self._fetcher and self._files is None else ""
            return (bad, page) if page else (State.READY, unknown)
        if unknown:
            return bad, unknown
        if not self._sight.changed:
            return State.STARTING, self._places.lack
        return State.READY, ""

    # Its own page.

    async def _look_at_page(self) -> None:
        needed = self._needs_page()
        answers = not self._ended and (self._port.well or self._answer.well)
        if self.url is not None and answers and needed is not False:
            self._fetcher = self._fetcher or await self._new_fetcher(self.url)
            await self._fetcher.look(needed, self._files)

    def _needs_page(self) -> bool | None:
        """Whether its files are not enough; None where that is to be found out."""
        found = self._found or self._running is None
        if self._files is None or not self._places.readable or not self._sight.changed:
            return found  # they may come yet
        return self._running.page_has_more if self._running is not None else None

    async def _new_fetcher(self, url: str) -> PageFetcher:
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
        return PageFetcher(source, self._page)

    def _labels(self) -> Mapping[str, str]:
        constant = self._options.constant
        if self._model and self._options.model_label:
            return {**constant, labels.MODEL: self._model}
        return constant

    def _load_labels(self) -> Mapping[str, str]:
        """As its series', and always with what tells engines apart and joins with `up`."""
        own = {**(self._labels() or {labels.ENGINE: self.name})}
        if self._options.identity:
            own[labels.WORKER_ID] = self._options.identity
        model = self._files.model if self._files is not None else ""
        return {labels.MODEL: model, **own} if model else own

    def _sources_known(self) -> bool:
        if self.url is None or self._needs_page() is False:
            return True
        return self._fetcher is not None and self._fetcher.known
