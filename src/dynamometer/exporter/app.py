"""An exporter: the page is served first, then each engine is added when it is found."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from prometheus_client import Gauge

from dynamometer.engines import kinds
from dynamometer.errors import DiscoveryError
from dynamometer.exporter import engine_headers, finder, procfs
from dynamometer.exporter.engine_headers import Header
from dynamometer.exporter.finder import FoundEngine
from dynamometer.exporter.observed_engine import ObservedEngine
from dynamometer.exporter.targets import (
    EngineOptions,
    Target,
    TargetFlags,
    check_directories,
    select,
)
from dynamometer.http import addresses, aiohttp_adapter
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics.page_limit import DEFAULT_MAX_PAGE_BYTES
from dynamometer.names import engine_state, labels
from dynamometer.process import children, tasks
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.signals import Stop
from dynamometer.process.tasks import restarting
from dynamometer.runtime import system
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.discovery.interface import Registration
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.identity import hexadecimal, new_id, stable_id
from dynamometer.runtime.record import Record, Role, State
from dynamometer.settings import HealthSettings

logger = logging.getLogger(__name__)

# Seconds between two searches of this machine's processes while no engine is known, or while the
# process of a known one has ended.
_RESTART_SEARCH_SECONDS: Final = 2.0
# Seconds between two searches for further engines.
_SEARCH_SECONDS: Final = 15.0
# Less than the 5 s after which SGLang's HTTP server closes an idle connection.
_ENGINE_KEEPALIVE_SECONDS: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class ExporterOptions:
    """Options of an exporter, from flags and environment."""

    selection: TargetFlags
    engine: EngineOptions
    headers: Sequence[Header]
    system_host: str
    system_port: int | None
    health: HealthSettings
    namespace: str
    component: str
    endpoint: str
    runtime_labels: bool
    max_page_bytes: int = DEFAULT_MAX_PAGE_BYTES
    forget_after: float
    drain_delay: float
    discovery_directory: Path | None


async def serve(options: ExporterOptions) -> None:
    """Run an exporter until a signal asks the process to end.

    Raises:
        DynamometerError: A flag is wrong, or an address or directory cannot be used.
    """
    if options.selection.pids or not options.selection:
        children.require_proc()
    stop = Stop()
    async with AsyncExitStack() as stack:
        selecting: BlockingCalls[list[Target]] = BlockingCalls("--pid")
        targets = await selecting.run(select, options.selection)
        checking: BlockingCalls[None] = BlockingCalls("--multiproc-dir")
        try:
            await checking.run(check_directories, targets)
        except HangError as error:
            logger.warning("%s: the file system may hang", error)
        headers = engine_headers.by_origin(options.headers, targets)
        listener = system.listen(options.system_host, options.system_port)
        session = await stack.enter_async_context(
            aiohttp_adapter.session(
                keepalive_seconds=_ENGINE_KEEPALIVE_SECONDS,
                middlewares=[headers],
            )
        )
        exporter = _Exporter(options, session)
        stack.push_async_callback(exporter.close)
        if listener is not None:
            exporter.record = replace(exporter.record, system_url=addresses.url(listener))
            await stack.enter_async_context(serving(exporter.application(), listener))
            logger.info(
                "metrics and health: %s/metrics, %s",
                exporter.record.system_url,
                options.health.path,
            )
        discovery = await connect(options.discovery_directory)
        registration = await stack.enter_async_context(discovery.register(exporter.record))
        running = asyncio.create_task(exporter.run(targets, registration), name="engines")
        try:
            await tasks.first_of(stop.requested, running)
            if not running.done():
                await exporter.drain(registration)
                await stop.delay(options.drain_delay)
        finally:
            await tasks.end(running)
        if not running.cancelled():
            running.result()  # raise the error that ended the task, which runs until cancelled


class _Exporter:
    """The engines beside an exporter, and their common page; the event loop owns all state.

    Attributes:
        record: the exporter's record in discovery.
    """

    def __init__(self, options: ExporterOptions, session: aiohttp.ClientSession) -> None:
        self._options = options
        self._session = session
        self._finds_new = not options.selection  # no flag selects engines
        self._engines: dict[str, ObservedEngine] = {}
        self._observing: dict[str, asyncio.Task[None]] = {}
        self._group = asyncio.TaskGroup()
        self._searching: BlockingCalls[finder.Search] = BlockingCalls("processes of this machine")
        self._last_search = finder.Search()
        self._search_fault = ""
        self._no_engine_logged = False
        self._draining = False
        self._up_labels: dict[str, tuple[str, str]] = {}
        id_ = new_id()
        runtime = DistributedRuntime(instance_id=id_)
        self._page = runtime.page
        self._page.limit_size(options.max_page_bytes)
        self._up = Gauge(
            engine_state.UP,
            "Whether the engine is ready: 1, or 0",
            (labels.ENGINE, labels.WORKER_ID),
            registry=runtime.registry,
        )
        self.record = Record(
            role=Role.EXPORTER,
            id=id_,
            namespace=options.namespace,
            component=options.component,
            endpoint=options.endpoint,
            since=time.time(),
        )

    def application(self) -> web.Application:
        status = system.SystemStatus(
            self._state, self._endpoints, self._reasons, self._options.health, self._details
        )
        return system.application(self._page, status)

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))

    async def run(self, targets: list[Target], registration: Registration) -> None:
        """Search for engines, observe each, and update the record, until cancelled."""
        async with self._group:
            for target in targets:
                self._add(target)
            update = partial(self._update_repeatedly, registration)
            async with (
                restarting(self._search_repeatedly, name="search"),
                restarting(update, name="record"),
            ):
                await asyncio.Event().wait()

    async def drain(self, registration: Registration) -> None:
        """Show on `/health` and in discovery that this exporter is ending; its page stays."""
        self._draining = True
        await self._update_record(registration)

    # Values for /health.

    def _state(self) -> State:
        if self._draining:
            return State.DRAINING
        states = {engine.state for engine in self._engines.values()}
        worst = (State.FAILED, State.UNRESPONSIVE, State.STARTING, State.READY)
        return next((state for state in worst if state in states), State.STARTING)

    def _endpoints(self) -> Mapping[str, State]:
        """Return the state of each engine; a starting one is failed without `ready_at_start`."""
        at_start = State.STARTING if self._options.health.ready_at_start else State.FAILED
        return {
            name: at_start if engine.state is State.STARTING else engine.state
            for name, engine in self._engines.items()
        }

    def _reasons(self) -> Mapping[str, str]:
        if not self._engines:
            return {"engines": self._no_engine_reason()}
        return {name: engine.reason for name, engine in self._engines.items() if engine.reason}

    def _details(self) -> Mapping[str, object]:
        """Return the report of each engine, and at the top that of the engine that decides."""
        state = self._state()
        own = {
            "state": state,
            "since": self.record.since,
            "reason": "the exporter is ending" if self._draining else self._no_engine_reason(),
            "last_exit": None,
            "attempts": [],
        }
        reports = {name: one.lifecycle.report() for name, one in self._engines.items()}
        decides = next((report for report in reports.values() if report["state"] is state), own)
        return {**decides, "engines": reports}

    def _no_engine_reason(self) -> str:
        if self._search_fault:
            return self._search_fault
        return (
            f"{self._last_search.own_user or 'this user'} has no process of {kinds.DEFAULT.title}, "
            "apart from engines of dyno workers"
        )

    # Engines.

    def _add(self, target: Target) -> None:
        options = self._options
        place = (target.name, target.url or "", *target.directories)
        identity = hexadecimal(stable_id(" ".join(place)))
        constant = {}
        if options.runtime_labels:
            constant = {
                labels.NAMESPACE: options.namespace,
                labels.COMPONENT: options.component,
                labels.ENDPOINT: options.endpoint,
            }
        # The series of several engines need a label that differs; the label `engine` is not enough,
        # because vLLM's series have their own.
        if options.runtime_labels or target.named or self._finds_new:
            constant[labels.WORKER_ID] = identity
        if target.named:
            constant[labels.ENGINE] = target.name
        engine_options = replace(
            options.engine,
            identity=identity,
            constant=constant,
            model_label=options.runtime_labels,
        )
        engine = ObservedEngine(target, engine_options, self._page, self._session)
        self._engines[target.name] = engine
        self._up_labels[target.name] = (target.name, identity)
        self._up.labels(target.name, identity).set_function(
            lambda: float(engine.state is State.READY)
        )
        logger.info("%s: %s", target.name, target.description)
        self._observing[target.name] = self._group.create_task(engine.observe())

    async def _search_repeatedly(self) -> None:
        """Search at once, often while a restarted engine is awaited, and rarely for new engines."""
        searched = float("-inf")
        while True:
            awaited = not self._engines or any(
                engine.needs_search for engine in self._engines.values()
            )
            due = self._finds_new and time.monotonic() - searched >= _SEARCH_SECONDS
            if awaited or due:
                searched = time.monotonic()
                await self._search()
            await asyncio.sleep(_RESTART_SEARCH_SECONDS)

    async def _search(self) -> None:
        """Search for restarted engines and, if no flag selects engines, for new engines."""
        await self._forget()
        engines = self._engines.values()
        if not self._finds_new and not any(engine.needs_search for engine in engines):
            return
        known = frozenset(engine.process for engine in engines if engine.process is not None)
        try:
            self._last_search = await self._searching.run(finder.find, known)
        except (HangError, *procfs.ERRORS) as error:
            fault = f"the processes of this machine cannot be searched: {error}"
            if fault != self._search_fault:
                self._search_fault = fault
                logger.warning("%s; searching again every %.0f s", fault, _RESTART_SEARCH_SECONDS)
            return
        self._search_fault = ""
        for first in self._last_search.engines:
            self._adopt_or_add(first)
        if not self._engines and not self._no_engine_logged:
            self._no_engine_logged = True
            self._log_no_engine()

    def _adopt_or_add(self, first: FoundEngine) -> None:
        """Record that a known engine was restarted as `first`, or add a new engine."""
        engines = self._engines.values()
        if any(engine.process == first.process for engine in engines):
            return
        ended = [one for one in engines if one.needs_search and one.found_name == first.name]
        if ended:
            ended[0].adopt(first)
        elif self._finds_new:
            self._add(Target(name=self._unused_name(first.name), first=first))

    def _unused_name(self, name: str) -> str:
        """Return `name`, with a number appended if another engine has this name."""
        names = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        return next(name for name in names if name not in self._engines)

    async def _forget(self) -> None:
        """Remove the engines that the exporter found and that ended long ago."""
        for name, engine in list(self._engines.items()):
            if self._finds_new and engine.can_be_forgotten(self._options.forget_after):
                logger.info("%s: forgotten", name)
                self._observing.pop(name).cancel()
                del self._engines[name]
                self._up.remove(*self._up_labels.pop(name))
                await engine.close()

    def _log_no_engine(self) -> None:
        logger.warning(
            "%s; searching again every %.0f s. Select an engine with --pid, --multiproc-dir "
            "or --engine-url",
            self._no_engine_reason(),
            _RESTART_SEARCH_SECONDS,
        )
        if self._last_search.other_users:
            logger.warning(
                "engines of other users (%s) cannot be inspected: run the exporter as that user or "
                "as root, or use --engine-url",
                ", ".join(sorted(self._last_search.other_users)),
            )

    async def _update_repeatedly(self, registration: Registration) -> None:
        """Update the record in discovery, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            await self._update_record(registration)

    async def _update_record(self, registration: Registration) -> None:
        """Write the state to the record in discovery, if the state changed."""
        state = self._state()
        if state is not self.record.state:
            self.record = replace(self.record, state=state, since=time.time())
            try:
                await registration.update(self.record)
            except DiscoveryError as error:
                logger.warning("%s; the record is written again later", error)
