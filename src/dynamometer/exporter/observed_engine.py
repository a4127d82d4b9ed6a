"""One engine beside the exporter: its checks, its sources on the page, and its state."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Final

import aiohttp
import psutil

from dynamometer.engines import kinds
from dynamometer.exporter import locations, procfs
from dynamometer.exporter.evidence import Evidence
from dynamometer.exporter.files_source import FilesSource, FilesStatus
from dynamometer.exporter.finder import FoundEngine
from dynamometer.exporter.health import HealthCheck
from dynamometer.exporter.locations import FileLocations
from dynamometer.exporter.page_fetcher import PageFetcher
from dynamometer.exporter.targets import EngineOptions, Target
from dynamometer.exposition.label_bounds import LabelBounds
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.http_source import HttpSource
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import NO_DP_RANK, labels
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.children import alive
from dynamometer.process.tasks import restarting
from dynamometer.runtime.engine_metrics import EngineMetrics
from dynamometer.runtime.lifecycle import Lifecycle
from dynamometer.runtime.record import State

logger = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 1.0
_FAULTY: Final = frozenset({State.UNRESPONSIVE, State.FAILED})


class ObservedEngine:
    """An engine that another program started; see `observe`.

    The event loop owns all state. Threads of `BlockingCalls` only return values to the loop. Other
    threads call `_load_signal_labels`, `_sources_known` and `_members`, which only read.
    """

    def __init__(
        self,
        target: Target,
        options: EngineOptions,
        page: MetricsPage,
        session: aiohttp.ClientSession,
    ) -> None:
        """Prepare the checks.

        Args:
            target: the engine.
            options: labels, limits and deadlines.
            page: the page that shows the engine's families.
            session: the HTTP client.
        """
        self.name = target.name
        self._target = target
        self._options = options
        self._page = page
        self._session = session
        self._first = target.first
        self._model = options.model or (target.first.model if target.first else "")
        self._check = self._new_check()
        self._evidence = Evidence(
            time.time(),
            has_process=self._first is not None,
            has_url=self._check is not None,
            started_at=self._first.started_at if self._first is not None else None,
        )
        self._locations = FileLocations()
        self._located = False  # a search while the engine was ready has found all its files
        self._files: FilesSource | None = None
        self._fetcher: PageFetcher | None = None
        self._health_checked = float("-inf")
        self._checking_process: BlockingCalls[bool] = BlockingCalls("processes")
        self._locating: BlockingCalls[FileLocations] = BlockingCalls("directories of the files")
        self._reading: BlockingCalls[FilesStatus] = BlockingCalls("files")
        kind = kinds.find(target.first.kind if target.first else "") or kinds.DEFAULT
        client_labels = target.first.client_labels if target.first else None
        self._label_bounds = LabelBounds(client_labels or kind.client_labels, options.label_limits)
        self._load_signals = kind.load_signals(
            self.name,
            self._load_signal_labels,
            ranks=True,
            complete=self._sources_known,
            pids=lambda: (process.pid for process in self._members()),
        )
        if self._load_signals.derivable_from(options.prefixes):
            page.derive(self._load_signals)
        self._metrics = EngineMetrics(
            self.name,
            self.lifecycle,
            self._load_signal_labels,
            page.current_sources,
            totals=kind.request_totals,
            directories=lambda: self._locations.readable,
            empty_at_start=False,
        )
        page.add_derived(self._metrics)
        self._end_applied = False
        self._logged_warnings: set[str] = set()
        self._logged_reason = ""

    @property
    def lifecycle(self) -> Lifecycle:
        """The engine's life so far."""
        return self._evidence.lifecycle

    @property
    def state(self) -> State:
        """The state of the engine."""
        return self.lifecycle.state

    @property
    def reason(self) -> str:
        """The reason of the state; may be empty."""
        return self.lifecycle.reason

    @property
    def needs_search(self) -> bool:
        """True if the first process has ended, so that a search must find the restarted engine."""
        return self._target.first is not None and self._evidence.first_ended

    def can_be_forgotten(self, seconds: float) -> bool:
        """Return whether the engine ended over `seconds` ago, or before it was ever ready."""
        long_ago = self.lifecycle.state_seconds > seconds
        return self.needs_search and (long_ago or not self.lifecycle.ever_ready)

    @property
    def found_name(self) -> str:
        """The name that `finder` gives the engine after a restart; empty without a process."""
        return self._target.first.name if self._target.first is not None else ""

    @property
    def process(self) -> psutil.Process | None:
        """The engine's first process, if known."""
        return self._first.process if self._first is not None else None

    async def observe(self) -> None:
        """Check the engine every second until cancelled; each check has a task of its own."""
        checks = {
            "processes": self._check_first,
            "files": self._check_files,
            "port": self._check_port,
            "health": self._check_health,
            "page": self._check_page,
        }
        async with AsyncExitStack() as stack:
            for name, check in checks.items():
                work = partial(self._repeat, name, check)
                await stack.enter_async_context(restarting(work, name=f"{self.name}: {name}"))
            await asyncio.Event().wait()

    def adopt(self, first: FoundEngine) -> None:
        """Observe the restarted engine, whose first process is `first`."""
        self._first = first
        self._located = False
        self._check = self._new_check()
        self._evidence.note_restart(has_url=self._check is not None, started_at=first.started_at)
        self._end_applied = False
        logger.info("%s: restarted as process %s", self.name, first.description)

    async def close(self) -> None:
        """Remove the engine from the page, and close its files unless their file system hangs."""
        self._page.remove(self._load_signals)
        self._page.remove(self._metrics)
        if self._fetcher is not None:
            self._page.remove(self._fetcher.source)
        if self._files is not None:
            self._page.remove(self._files)
            closing: BlockingCalls[None] = BlockingCalls("closing", deadline=1.0)
            with suppress(HangError):
                await closing.run(self._files.close)

    @property
    def url(self) -> str | None:
        """The engine's address, without a path."""
        if self._target.url is not None:
            return self._target.url
        return self._first.url if self._first is not None else None

    def _new_check(self) -> HealthCheck | None:
        if self.url is None:
            return None
        options = self._options
        return HealthCheck(
            self._session, self.url, options.health_path, deadline=options.health_deadline
        )

    # Checks and their results.

    async def _repeat(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        faults = self._evidence.faults
        while True:
            try:
                await check()
                fault = ""
            except HangError as error:
                fault = str(error)
            except procfs.ERRORS as error:
                fault = f"{name} cannot be checked: {error}"
            if fault and faults.get(name) != fault:
                faults[name] = fault
                logger.warning("%s: %s", self.name, fault)
            elif not fault and faults.pop(name, ""):
                logger.info("%s: %s can be checked again", self.name, name)
            self._conclude()
            await asyncio.sleep(_CHECK_SECONDS)

    def _conclude(self) -> None:
        """Update the engine's state from the evidence, and log each change of the state once."""
        evidence = self._evidence
        ended = bool(evidence.end_reason)
        if ended and not self._end_applied and self._fetcher is not None:
            self._fetcher.source.note_end()
        elif self._end_applied and not ended:
            logger.info("%s: the engine is running again", self.name)
        self._end_applied = ended
        if self._files is not None:
            self._files.liveness = evidence.liveness
        if self._fetcher is not None:
            evidence.page_fault = self._fetcher.source.fault if self._files is None else ""
        life = self.lifecycle
        before = life.state
        evidence.conclude(time.time())
        if life.state is State.READY and before is not State.READY:
            logger.info("%s: ready", self.name)
            self._logged_reason = ""
        # `HttpSource` logs the faults of the engine's own page.
        changed = ended or before not in _FAULTY
        if life.state in _FAULTY and changed and life.reason != evidence.page_fault:
            self._log_failure(life.reason)

    def _log_failure(self, reason: str) -> None:
        if reason != self._logged_reason:
            self._logged_reason = reason
            logger.warning("%s: %s", self.name, reason)

    def _warn_once(self, text: str) -> None:
        if text not in self._logged_warnings:
            self._logged_warnings.add(text)
            logger.warning("%s: %s", self.name, text)

    async def _check_first(self) -> None:
        first = self._first
        if first is None or self._evidence.first_ended:
            return
        lives = await self._checking_process.run(alive, first.process)
        if not lives and first is self._first:
            self._evidence.note_first_ended(first.description)

    async def _check_files(self) -> None:
        evidence = self._evidence
        if not evidence.first_ended:
            await self._locate_files()
        if self._files is not None:
            paths = self._locations.directories
            read = self._first is None and (bool(evidence.end_reason) or evidence.has_only_files)
            status = await self._reading.run(self._files.check, paths, read=read)
            evidence.note_files(status, ", ".join(paths))
        if not evidence.end_reason:  # an engine that has ended may remove its directory
            for text in self._locations.warnings:
                self._warn_once(text)
        evidence.searched = self._locations.first is self._first

    async def _locate_files(self) -> None:
        first = self._first
        if self._located or (first is None and not self._target.directories):
            return
        # All processes and files of an engine exist once the engine is ready.
        ready = self.state is State.READY
        found = await self._locating.run(locations.locate, self._target, first)
        if found.first is not self._first:
            return
        self._located = ready and first is not None
        if not found.directories and (ready or self.url is None):
            self._warn_once(found.missing_reason)
        if found.directories and found.directories != self._locations.directories:
            for path in found.readable:
                logger.info("%s: reading its files in %s", self.name, path)
        self._locations = replace(
            found, directories=found.directories or self._locations.directories
        )
        self._evidence.missing_reason = found.missing_reason
        if self._files is None and found.directories:
            self._files = self._new_files()

    def _new_files(self) -> FilesSource:
        files = FilesSource(
            self.name,
            constant=self._labels(),
            model_label=self._options.model_label,
            prefixes=self._options.prefixes,
            max_series=self._options.max_series,
            label_bounds=self._label_bounds,
            members=self._members,
        )
        files.liveness = self._evidence.liveness
        self._page.add(files)
        return files

    def _members(self) -> Sequence[psutil.Process]:
        return locations.members(self._first)

    async def _check_port(self) -> None:
        check, evidence = self._check, self._evidence
        known = self.state is State.READY and evidence.has_visible_process and not evidence.faults
        if check is None or known:
            return
        result = await check.check_port()
        if check is self._check:
            evidence.note_port(result)

    async def _check_health(self) -> None:
        check, evidence = self._check, self._evidence
        interval = self._options.health_interval
        passed = interval > 0 and time.monotonic() - self._health_checked >= interval
        if check is None or evidence.end_reason or not (passed or evidence.needs_health_check):
            return
        self._health_checked = time.monotonic()
        result = await check.check_health()
        if check is self._check:
            evidence.note_health(result)
            if result.healthy:
                self._metrics.note_progress(NO_DP_RANK, time.time())

    # The engine's own page.

    async def _check_page(self) -> None:
        needed = self._needs_page()
        if self._check is None or needed is False or not self._evidence.is_answering:
            return
        self._fetcher = self._fetcher or await self._new_fetcher(self._check)
        # A closed port means that the engine has ended, which the other checks report.
        if self._fetcher.is_due(needed) and (await self._check.check_port()).healthy:
            await self._fetcher.fetch(needed, self._files)

    def _needs_page(self) -> bool | None:
        """Return True if families of the engine are missing from its files, so its page is needed.

        Return None if only a comparison of the page with the files can show that.
        """
        located = self._located or self._first is None
        if self._files is None or not self._locations.readable or not self._evidence.has_values:
            return located  # before the search of a ready engine, files may still appear
        return self._first.page_has_more if self._first is not None else None

    async def _new_fetcher(self, check: HealthCheck) -> PageFetcher:
        if not self._model and self._files is not None:
            self._model = self._files.model  # all series of an engine have the same model
        self._model = self._model or await check.fetch_model()
        source = HttpSource(
            f"{self.name}_http",
            self._target.page_url or f"{self.url}/metrics",
            session=self._session,
            owner=self.name,
            prefixes=self._options.prefixes,
            labels=self._labels(),
            totals=Totals(),
            label_bounds=self._label_bounds,
            deadline=self._options.page_deadline,
        )
        return PageFetcher(source, self._page)

    def _labels(self) -> Mapping[str, str]:
        constant = self._options.constant
        if self._model and self._options.model_label:
            return {**constant, labels.MODEL: self._model}
        return constant

    def _load_signal_labels(self) -> Mapping[str, str]:
        """Return the labels of the load signals, which always distinguish the engines."""
        own = {**(self._labels() or {labels.ENGINE: self.name})}
        if self._options.identity:
            own[labels.WORKER_ID] = self._options.identity
        model = self._files.model if self._files is not None else ""
        return {labels.MODEL: model, **own} if model else own

    def _sources_known(self) -> bool:
        """Return whether every source that may contain load signals has been read."""
        if self.url is None or self._needs_page() is False:
            return True
        return self._fetcher is not None and self._fetcher.fetched
