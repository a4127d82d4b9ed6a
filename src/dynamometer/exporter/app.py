"""An exporter, put together: the page first, then the engines, as they are found."""

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
from dynamometer.exporter.finder import Running
from dynamometer.exporter.observed_engine import ObservedEngine
from dynamometer.exporter.options import EngineOptions
from dynamometer.exporter.targets import Given, Target, check_directories, targets
from dynamometer.http import addresses, relay
from dynamometer.http.servers import serving
from dynamometer.names import engine_state, labels
from dynamometer.process import tasks
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

# How often the processes of this machine are looked through: where an engine is missed, and
# otherwise, for engines that were started since.
_SEARCH_SECONDS: Final = 2.0
_LOOK_AROUND_SECONDS: Final = 15.0
# Less than the 5 s after which SGLang's HTTP server closes an idle connection.
_ENGINE_KEEPALIVE_SECONDS: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class ExporterOptions:
    """What an exporter is told, by flags and environment; `system_port` as a worker's."""

    given: Given
    engine: EngineOptions
    headers: Sequence[Header]
    system_host: str
    system_port: int | None
    health: HealthSettings
    namespace: str
    component: str
    endpoint: str
    runtime_labels: bool
    forget_after: float
    discovery_directory: Path | None


async def serve(options: ExporterOptions) -> None:
    """Run an exporter until a signal asks it to end.

    Raises:
        DynamometerError: something that it needs cannot be had; says what.
    """
    stop = Stop()
    async with AsyncExitStack() as stack:
        reading: BlockingCalls[list[Target]] = BlockingCalls("flags")
        meant = await reading.run(partial(targets, options.given))
        checking: BlockingCalls[None] = BlockingCalls("--multiproc-dir")
        try:
            await checking.run(partial(check_directories, meant))
        except HangError as error:
            logger.warning("%s: a file system may hang", error)
        listener = system.listen(options.system_host, options.system_port)
        session = await stack.enter_async_context(
            relay.client(
                keepalive_seconds=_ENGINE_KEEPALIVE_SECONDS,
                middlewares=[engine_headers.by_origin(options.headers, meant)],
            )
        )
        exporter = _Exporter(options, session)
        stack.push_async_callback(exporter.close)
        record = exporter.record
        if listener is not None:
            record = replace(record, system_url=addresses.url(listener))
            await stack.enter_async_context(serving(exporter.application(), listener))
            logger.info(
                "metrics and health: %s/metrics, %s", record.system_url, options.health.path
            )
        discovery = await connect(options.discovery_directory)
        registration = await stack.enter_async_context(discovery.register(record))
        running = asyncio.create_task(exporter.run(meant, registration, record), name="engines")
        try:
            await tasks.first_of(stop.requested, running)
        finally:
            await tasks.end(running)
        if not running.cancelled():
            running.result()  # it has failed: it does not end by itself


class _Exporter:
    def __init__(self, options: ExporterOptions, session: aiohttp.ClientSession) -> None:
        self._options = options
        self._session = session
        self._searches = not options.given
        self._engines: dict[str, ObservedEngine] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._id = new_id()
        self._group = asyncio.TaskGroup()
        self._finding: BlockingCalls[finder.Search] = BlockingCalls("the processes of this machine")
        self._found = finder.Search()
        self._search_fault = ""
        self._told_others = False
        self._labels_of_up: dict[str, tuple[str, str]] = {}
        runtime = DistributedRuntime(instance_id=self._id)
        self._page = runtime.page
        self._up = Gauge(
            engine_state.UP,
            "Whether the engine is ready: 1, or 0",
            (labels.ENGINE, labels.WORKER_ID),
            registry=runtime.registry,
        )
        self.record = Record(
            role=Role.EXPORTER,
            id=self._id,
            namespace=options.namespace,
            component=options.component,
            endpoint=options.endpoint,
            since=time.time(),
        )

    def application(self) -> web.Application:
        status = system.SystemStatus(
            self._state, self._endpoints, self._reasons, self._options.health
        )
        return system.application(self._page, status)

    async def close(self) -> None:
        await asyncio.gather(*(engine.leave() for engine in self._engines.values()))

    async def run(self, meant: list[Target], registration: Registration, record: Record) -> None:
        async with self._group:
            for target in meant:
                self._add(target)
            tell = partial(self._tell, registration, record)
            async with restarting(self._search_on, name="search"), restarting(tell, name="record"):
                await asyncio.Event().wait()

    def _state(self) -> State:
        states = [engine.state for engine in self._engines.values()]
        if states and all(state is State.READY for state in states):
            return State.READY
        return State.FAILED if State.FAILED in states else State.STARTING

    def _endpoints(self) -> Mapping[str, State]:
        """All engines; those that start too, as not ready where they may not be called so."""
        at_start = State.STARTING if self._options.health.ready_at_start else State.FAILED
        return {
            name: at_start if engine.state is State.STARTING else engine.state
            for name, engine in self._engines.items()
        }

    def _reasons(self) -> Mapping[str, str]:
        if not self._engines:
            return {"engines": self._nothing()}
        return {name: engine.reason for name, engine in self._engines.items() if engine.reason}

    def _nothing(self) -> str:
        if self._search_fault:
            return self._search_fault
        return (
            f"no {kinds.DEFAULT.title}, besides those of dyno workers, was found among the "
            f"processes of {self._found.own_user or 'this user'}"
        )

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
        # Where there may be several engines their series need a label that differs. A series of
        # vLLM's has its own `engine`.
        if options.runtime_labels or target.named or self._searches:
            constant[labels.WORKER_ID] = identity
        if target.named:
            constant[labels.ENGINE] = target.name
        of_engine = replace(
            options.engine,
            identity=identity,
            constant=constant,
            model_label=options.runtime_labels,
        )
        engine = ObservedEngine(target, of_engine, self._page, self._session)
        self._engines[target.name] = engine
        self._labels_of_up[target.name] = (target.name, identity)
        self._up.labels(target.name, identity).set_function(
            lambda: float(engine.state is State.READY)
        )
        logger.info("%s: %s", target.name, target.text)
        self._watching[target.name] = self._group.create_task(engine.watch())

    async def _search_on(self) -> None:
        """Search at once, then where an engine is missed, and now and then for new ones."""
        searched = float("-inf")
        while True:
            missed = not self._engines or any(e.lost for e in self._engines.values())
            due = self._searches and time.monotonic() - searched >= _LOOK_AROUND_SECONDS
            if missed or due:
                searched = time.monotonic()
                await self._search()
            await asyncio.sleep(_SEARCH_SECONDS)

    async def _search(self) -> None:
        """Look for engines that were lost, and, where none was named, for new ones."""
        await self._forget()
        engines = self._engines.values()
        if not self._searches and not any(engine.lost for engine in engines):
            return
        known = frozenset(engine.process for engine in engines if engine.process is not None)
        try:
            self._found = await self._finding.run(partial(finder.find, known))
        except (HangError, *procfs.ERRORS) as error:
            fault = f"the processes of this machine cannot be searched: {error}"
            if fault != self._search_fault:
                self._search_fault = fault
                logger.warning("%s; trying again every %.0f s", fault, _SEARCH_SECONDS)
            return
        self._search_fault = ""
        for running in self._found.running:
            self._take(running)
        if not self._engines and not self._told_others:
            self._told_others = True
            self._tell_nothing()

    def _take(self, running: Running) -> None:
        """Go on with a lost engine that was started again, or add a new one."""
        if any(engine.process == running.process for engine in self._engines.values()):
            return
        lost = [
            engine
            for engine in self._engines.values()
            if engine.lost and engine.searched_name == running.name
        ]
        if lost:
            lost[0].adopt(running)
        elif self._searches:
            self._add(Target(name=self._unused(running.name), running=running))

    def _unused(self, name: str) -> str:
        """The name, with a number where another engine has it."""
        names = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        return next(name for name in names if name not in self._engines)

    async def _forget(self) -> None:
        """Engines that were found, and have ended long ago, are missed no more."""
        for name, engine in list(self._engines.items()):
            if self._searches and engine.forgettable(self._options.forget_after):
                logger.info("%s: forgotten", name)
                self._watching.pop(name).cancel()
                del self._engines[name]
                self._up.remove(*self._labels_of_up.pop(name))
                await engine.leave()

    def _tell_nothing(self) -> None:
        logger.warning(
            "%s yet; looking again every %.0f s. --pid, --multiproc-dir or --engine-url name one",
            self._nothing(),
            _SEARCH_SECONDS,
        )
        if self._found.other_users:
            logger.warning(
                "there are engines of %s: run the exporter as that user or as root, or give "
                "--engine-url",
                ", ".join(sorted(self._found.other_users)),
            )

    async def _tell(self, registration: Registration, record: Record) -> None:
        """Keep the record in discovery current."""
        while True:
            await asyncio.sleep(1.0)
            state = self._state()
            if state is not record.state:
                record = replace(record, state=state, since=time.time())
                try:
                    await registration.update(record)
                except DiscoveryError as error:
                    logger.warning("%s; trying again", error)
