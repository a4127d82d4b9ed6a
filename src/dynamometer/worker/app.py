"""A worker, put together: system server first, then its record, its endpoint, its engine."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from aiohttp import web

from dynamometer.engines.interface import Launch, StartableEngine
from dynamometer.errors import DirectoryError, DiscoveryError, SettingsError
from dynamometer.http import addresses
from dynamometer.http.servers import serving
from dynamometer.metrics.engine_callback import register_engine_metrics_callback
from dynamometer.metrics.http_source import HttpSource
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.names import labels
from dynamometer.process import private_directories, tasks
from dynamometer.process.blocking import entered
from dynamometer.process.signals import Stop
from dynamometer.runtime import system
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.discovery.interface import Registration
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.distributed import Endpoint as RuntimeEndpoint
from dynamometer.runtime.identity import hexadecimal, new_id
from dynamometer.runtime.record import ENGINE_VERSION, Record, Role, State
from dynamometer.settings import HealthSettings
from dynamometer.worker.build_metrics import BuildMetrics
from dynamometer.worker.endpoint import Endpoint, engine_session
from dynamometer.worker.endpoint_metrics import EndpointMetrics
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.run_directory import RunDirectory, run_directory
from dynamometer.worker.supervisor import Supervisor

logger = logging.getLogger(__name__)

# Leftovers of killed workers are cleared first.
_DIRECTORY_SECONDS: Final = 20.0


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a worker is told, by flags and environment. Ports: 0 is any free one.

    `system_port` is None where nobody asked for one (8081, or any free one where that is
    taken) and -1 for no system server. `component` is empty where nobody named one:
    it is the one of the engine's mode then.
    """

    arguments: Sequence[str]
    engine_python: str
    host: str
    port: int
    system_host: str
    system_port: int | None
    health: HealthSettings
    namespace: str
    component: str
    endpoint: str
    runtime_labels: bool
    drain_timeout: float
    max_body_size: int
    max_series: int
    discovery_directory: Path | None


async def serve(options: WorkerOptions, engine: StartableEngine) -> None:
    """Run a worker until a signal asks it to end.

    Raises:
        EngineError: the engine ended by itself.
        DynamometerError: something that it needs cannot be had; says what.
    """
    if set(options.health.endpoints) - {options.endpoint}:
        raise SettingsError(
            f"DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS={json.dumps(options.health.endpoints)}: "
            f'the only endpoint of this worker is ["{options.endpoint}"] (--endpoint)'
        )
    private_directories.require_current()
    stop = Stop()
    async with AsyncExitStack() as stack:
        instance_id = new_id()
        directory = await stack.enter_async_context(
            entered(
                run_directory(instance_id),
                name="the worker's directory",
                within=_DIRECTORY_SECONDS,
            )
        )
        launch = await asyncio.to_thread(_plan, options, engine, directory)
        options = replace(options, component=options.component or launch.component)
        listener = system.listen(options.system_host, options.system_port)
        request_socket = addresses.listen(
            options.host, options.port, setting="--port", host_setting="--host"
        )
        worker = _Worker(options, engine, launch, instance_id, directory)
        worker.record = replace(worker.record, request_url=addresses.url(request_socket))
        await stack.enter_async_context(worker.session)
        if listener is not None:
            worker.record = replace(worker.record, system_url=addresses.url(listener))
            await stack.enter_async_context(serving(worker.system_application(), listener))
            logger.info(
                "metrics and health: %s/metrics, %s", worker.record.system_url, options.health.path
            )
        discovery = await connect(options.discovery_directory)
        registration = await stack.enter_async_context(discovery.register(worker.record))
        await stack.enter_async_context(serving(worker.endpoint.application(), request_socket))
        logger.info("requests: %s (instance %016x)", worker.record.request_url, instance_id)
        for note in launch.notes:
            logger.info("%s", note)
        await worker.run(registration, stop)


def _plan(options: WorkerOptions, engine: StartableEngine, directory: RunDirectory) -> Launch:
    """Plan the engine's start, and write what that needs into `directory`.

    Raises:
        SettingsError: The engine's flags do not say what is needed.
        DirectoryError: `directory` cannot be written to.
    """
    try:
        launch = engine.plan(
            options.arguments, directory=directory.path, python=options.engine_python
        )
    except OSError as error:
        raise DirectoryError(
            f"cannot prepare the engine's start: {error.filename or directory.path}: "
            f"{error.strerror}"
        ) from None
    if launch.api_key and not launch.api_key.isprintable():
        raise SettingsError(
            "--api-key: a key with line breaks or control characters cannot be sent"
        )
    return launch


class _Worker:
    """The parts that a running worker is made of."""

    def __init__(
        self,
        options: WorkerOptions,
        engine: StartableEngine,
        launch: Launch,
        instance_id: int,
        directory: RunDirectory,
    ) -> None:
        self._options = options
        runtime = self._runtime = DistributedRuntime(instance_id=instance_id)
        component = runtime.namespace(options.namespace).component(options.component)
        endpoint = component.endpoint(options.endpoint)
        identity = {labels.MODEL: launch.model, labels.WORKER_ID: hexadecimal(instance_id)}
        every_label = {**endpoint.labels, **identity}
        self.session = engine_session()
        client = EngineClient(self.session, engine, launch)
        self._supervisor = Supervisor(engine, launch, client, directory)
        self._build = BuildMetrics(
            runtime.level({labels.COMPONENT: options.component}),
            runtime.registry,
            engine=engine.name,
            model=launch.model,
        )
        self.endpoint = Endpoint(
            engine_url=launch.url,
            routes=engine.routes,
            metrics=EndpointMetrics(endpoint.metrics, runtime.registry, identity),
            session=self.session,
            state=lambda: self._supervisor.state,
            models=lambda: self._supervisor.models,
            max_body_size=options.max_body_size,
            api_key=launch.api_key,
        )
        own = every_label if options.runtime_labels else {}
        self._add_files(endpoint, engine, launch, own)
        self._fetched = self._add_page(endpoint, engine, launch, own)
        runtime.page.derive(engine.load_signals(engine.name, lambda: every_label, component=True))
        self.record = Record(
            role=Role.WORKER,
            id=instance_id,
            namespace=options.namespace,
            component=options.component,
            endpoint=options.endpoint,
            mode=launch.mode,
            engine=engine.name,
            stream_usage=launch.stream_usage,
            since=time.time(),
        )

    def _add_files(
        self,
        endpoint: RuntimeEndpoint,
        engine: StartableEngine,
        launch: Launch,
        own: Mapping[str, str],
    ) -> None:
        """Put what the engine's processes write on the page, with `own` labels.

        The reader adds them itself: added behind it they would cost twice as much.
        """
        if launch.sources.directory is None:
            return
        files = MultiprocessDirectory(
            launch.sources.directory,
            labels=own,
            owned=True,
            max_series=self._options.max_series,
        )
        register_engine_metrics_callback(
            endpoint, files, engine.metric_prefixes, source=engine.name
        )

    def _add_page(
        self,
        endpoint: RuntimeEndpoint,
        engine: StartableEngine,
        launch: Launch,
        own: Mapping[str, str],
    ) -> HttpSource | None:
        """Put the engine's own page on ours, with `own` labels, where it has more."""
        if launch.sources.page_url is None:
            return None
        source = HttpSource(
            f"{engine.name}_http",
            launch.sources.page_url,
            session=self.session,
            owner=engine.name,
            prefixes=engine.metric_prefixes,
            labels=own,
        )
        endpoint.metrics.register_source(source)
        return source

    def system_application(self) -> web.Application:
        def state() -> State:
            return self._supervisor.state

        status = system.SystemStatus(
            state, lambda: {self._options.endpoint: state()}, health=self._options.health
        )
        return system.application(self._runtime.page, status)

    async def _fetch(self) -> None:
        """Fetch the engine's own page, where it is one of the sources, once it can be there."""
        if self._fetched is not None:
            await self._supervisor.ready.wait()
            await self._fetched.run()

    async def run(self, registration: Registration, stop: Stop) -> None:
        async def changed() -> None:
            if self._supervisor.state is State.READY:
                version = self._supervisor.info.get(ENGINE_VERSION, "")
                self._build.ready(self._supervisor.load_seconds, engine_version=str(version))
            self.record = replace(
                self.record,
                state=self._supervisor.state,
                since=self._supervisor.since,
                models=self._supervisor.models.names,
                model_info=dict(self._supervisor.models.cards),
                engine_info=self._supervisor.info,
            )
            try:
                await registration.update(self.record)
            except DiscoveryError as error:
                logger.warning("%s; trying again", error)

        async with (
            self._supervisor.running(changed, stop.immediate.is_set) as ended,
            tasks.restarting(self._fetch, name="engine's page"),
        ):
            await tasks.first_of(stop.requested, ended)
            if ended.done():
                await changed()
                # Their 502s, or the ends of their streams.
                await self.endpoint.in_flight.drain(stop, 1.0)
                raise ended.result()
            self._supervisor.drain()
            await changed()
            await self.endpoint.in_flight.drain(stop, self._options.drain_timeout)
