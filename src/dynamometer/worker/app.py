"""The composition of a worker: system server, record in discovery, endpoint, engine."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Final

from aiohttp import web

from dynamometer.engines import accelerators
from dynamometer.engines.interface import Launch, StartableEngine
from dynamometer.errors import DirectoryError, DiscoveryError, DynamometerError, SettingsError
from dynamometer.exposition.label_bounds import LabelBounds
from dynamometer.http import addresses, aiohttp_adapter, server
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.http.messages import LONGEST_HEAD
from dynamometer.http.origins import Origins
from dynamometer.names import labels
from dynamometer.process import children, private_directories, tasks
from dynamometer.process.blocking import entered
from dynamometer.process.signals import Stop
from dynamometer.runtime import system
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.discovery.interface import Discovery, Registration
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.engine_metrics import EngineMetrics
from dynamometer.runtime.identity import hexadecimal, new_id
from dynamometer.runtime.lifecycle import DEFAULT_POLICY
from dynamometer.runtime.record import ENGINE_VERSION, Json, Record, Role, State
from dynamometer.worker.build_metrics import BuildMetrics
from dynamometer.worker.control import controlled
from dynamometer.worker.endpoint import Endpoint, engine_client
from dynamometer.worker.endpoint_metrics import EndpointMetrics
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.engine_sources import EngineSources
from dynamometer.worker.incidents import Incidents
from dynamometer.worker.node_watchdog import NodeWatchdog
from dynamometer.worker.nodes import Nodes
from dynamometer.worker.options import WorkerOptions
from dynamometer.worker.run_directory import RunDirectory, run_directory
from dynamometer.worker.stacks import write_stacks
from dynamometer.worker.supervisor import END_GRACE_SECONDS, OnChange, Supervisor
from dynamometer.worker.traffic import Traffic
from dynamometer.worker.watchdog import Watchdog

logger = logging.getLogger(__name__)

# Creating the directory includes removing the leftovers of killed workers.
_DIRECTORY_SECONDS: Final = 20.0
_STACKS_SECONDS: Final = 10.0


async def serve(options: WorkerOptions, engine: StartableEngine) -> None:
    """Run a worker until a signal ends it.

    Raises:
        EngineError: The engine ended by itself.
        DynamometerError: The worker cannot start, for example because its port is in use.
    """
    if set(options.health.endpoints) - {options.endpoint}:
        raise SettingsError(
            f"DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS={json.dumps(options.health.endpoints)}: "
            f'the only endpoint of this worker is ["{options.endpoint}"] (--endpoint)'
        )
    private_directories.require_current()
    children.require_proc()
    stop = Stop()
    async with AsyncExitStack() as stack:
        instance_id = new_id() if options.worker_id is None else options.worker_id
        directory = await stack.enter_async_context(
            entered(
                run_directory(instance_id),
                name="the directory of the worker",
                within=_DIRECTORY_SECONDS,
            )
        )
        launch = await asyncio.to_thread(_plan, options, engine, directory)
        options = replace(options, component=options.component or launch.component)
        listener = system.listen(options.system_host, options.system_port)
        worker = _Worker(options, engine, launch, instance_id, directory)
        request_socket = None
        if launch.answers_requests:
            request_socket = addresses.listen(
                options.host, options.port, setting="--port", host_setting="--host"
            )
            worker.record = replace(worker.record, request_url=addresses.url(request_socket))
        gpu_uuids = await asyncio.to_thread(accelerators.visible_nvidia_uuids)
        worker.record = replace(worker.record, gpu_uuids=gpu_uuids)
        await stack.enter_async_context(worker.session)
        if listener is not None:
            worker.record = replace(worker.record, system_url=addresses.url(listener))
            await stack.enter_async_context(serving(worker.system_application(), listener))
            logger.info(
                "metrics and health: %s/metrics, %s", worker.record.system_url, options.health.path
            )
        discovery = await connect(options.discovery_directory)
        registration = await stack.enter_async_context(discovery.register(worker.record))
        stack.callback(worker.client.close)
        if request_socket is None:
            logger.info(
                "node %d of %d: node 0 serves the requests (instance %016x)",
                launch.node_rank,
                launch.nodes,
                instance_id,
            )
        else:
            await stack.enter_async_context(
                server.serving(
                    worker.endpoint.handlers(Origins(options.allowed_origins)),
                    request_socket,
                    # A frontend with the same limits adds a few bytes to a head and to a body.
                    limits=server.Limits(
                        body_bytes=options.max_body_size + 1024, head_bytes=LONGEST_HEAD + 1024
                    ),
                )
            )
            logger.info("requests: %s (instance %016x)", worker.record.request_url, instance_id)
        for note in launch.notes:
            logger.info("%s", note)
        await worker.run(discovery, registration, stop)


def _plan(options: WorkerOptions, engine: StartableEngine, directory: RunDirectory) -> Launch:
    """Return the engine's command line and environment, and write its files into `directory`.

    Raises:
        SettingsError: A flag of the engine is missing or has a wrong value.
        AddressError: A port that the user chose for the engine is in use.
        DirectoryError: `directory` cannot be written to.
    """
    try:
        launch = engine.plan(
            options.arguments,
            directory=directory.path,
            python=options.engine_python,
            transfer_host=options.transfer_host,
        )
    except OSError as error:
        raise DirectoryError(
            f"cannot prepare the engine's start: {error.filename or directory.path}: "
            f"{error.strerror}"
        ) from None
    if launch.api_key and not launch.api_key.isprintable():
        raise SettingsError("--api-key: the key must not contain line breaks or control characters")
    return launch


class _Worker:
    """The parts of a running worker.

    Attributes:
        session: the HTTP session for requests to the engine.
        endpoint: the HTTP routes for requests.
        record: the worker's record in discovery.
    """

    def __init__(
        self,
        options: WorkerOptions,
        engine: StartableEngine,
        launch: Launch,
        instance_id: int,
        directory: RunDirectory,
    ) -> None:
        self._options = options
        self._directory = directory.path
        runtime = self._runtime = DistributedRuntime(instance_id=instance_id)
        runtime.page.limit_size(options.max_page_bytes)
        component = runtime.namespace(options.namespace).component(options.component)
        endpoint = component.endpoint(options.endpoint)
        identity = {labels.MODEL: launch.model, labels.WORKER_ID: hexadecimal(instance_id)}
        every_label = {**endpoint.labels, **identity}
        self.client = engine_client()
        # For probes: each has a connection of its own.
        self.session = aiohttp_adapter.session(keepalive_seconds=None)
        self._engine_client = EngineClient(self.session, engine, launch)
        self.record = Record(
            role=Role.WORKER,
            id=instance_id,
            namespace=options.namespace,
            component=options.component,
            endpoint=options.endpoint,
            models=(launch.model,),
            mode=launch.mode,
            bootstrap=launch.bootstrap,
            nodes=launch.nodes,
            node_rank=launch.node_rank,
            group=launch.group,
            engine=engine.name,
            stream_usage=launch.stream_usage,
            labels_header=launch.labels_header,
            since=time.time(),
        )
        self._nodes = Nodes(self.record) if launch.nodes > 1 else None
        self._supervisor = Supervisor(
            engine,
            launch,
            self._engine_client,
            directory,
            policy=replace(DEFAULT_POLICY, limit=options.restart_limit),
            hang_restart=options.hang_restart,
            nodes=self._nodes,
        )
        self._build = BuildMetrics(
            runtime.level({labels.COMPONENT: options.component}),
            runtime.registry,
            engine=engine.name,
            launch=launch,
            worker=every_label,
        )
        self.endpoint = Endpoint(
            engine_url=launch.url,
            routes=engine.routes,
            metrics=EndpointMetrics(endpoint.metrics, runtime.registry, identity),
            client=self.client,
            state=lambda: self._supervisor.state,
            models=lambda: self._supervisor.models,
            api_key=launch.api_key,
            accepts=lambda: self._traffic.accepts,
        )
        self._traffic = Traffic(
            self._supervisor.lifecycle, self.endpoint.in_flight, delay=options.drain_delay
        )
        own = every_label if options.runtime_labels else {}
        if own and launch.repeats_node_0:
            own = own | {labels.NODE_RANK: str(launch.node_rank)}
        self._label_bounds = LabelBounds(launch.client_labels, options.label_limits)
        self._sources = EngineSources(
            endpoint,
            engine,
            launch,
            labels=own,
            session=self.session,
            max_series=options.max_series,
            label_bounds=self._label_bounds,
        )
        if not launch.repeats_node_0:
            runtime.page.derive(
                engine.load_signals(
                    engine.name,
                    lambda: every_label,
                    component=True,
                    ranks=True,
                    pids=children.descendant_pids,
                )
            )
        self._engine_metrics = EngineMetrics(
            engine.name,
            self._supervisor.lifecycle,
            lambda: every_label,
            runtime.page.current_sources,
            totals=engine.request_totals,
            directories=self._sources.directories,
            empty_at_start=True,
            nodes=launch.nodes,
        )
        runtime.page.add_derived(self._engine_metrics)

    def system_application(self) -> web.Application:
        """Return the application of the system server."""

        def state() -> State:
            return self._supervisor.state

        endpoint = self._options.endpoint
        status = system.SystemStatus(
            state,
            lambda: {endpoint: state()},
            lambda: {endpoint: reason} if (reason := self._reason()) else {},
            self._options.health,
            self._report,
        )
        return system.application(self._runtime.page, status)

    def _reason(self) -> str:
        """Return the reason of the engine's state for `/health`; may be empty."""
        return self._supervisor.public_log.clean(self._supervisor.lifecycle.reason)

    def _report(self) -> Mapping[str, Json]:
        """Return the state of the engine for `/health`, with its log unless it is ready."""
        log = self._supervisor.public_log
        report = self._supervisor.lifecycle.report(log.clean)
        if self._supervisor.state is not State.READY:
            report["log"] = list(log.lines)
        if self._nodes is not None:
            report["group"] = self._nodes.group.report()
        return report

    def _use(self, launch: Launch) -> None:
        """Send the next requests to the engine that `launch` starts."""
        self.endpoint.engine_url = launch.url
        self._sources.use(launch)
        self.record = replace(self.record, bootstrap=launch.bootstrap)

    async def run(self, discovery: Discovery, registration: Registration, stop: Stop) -> None:
        """Run the engine until a signal, and keep the record in discovery current.

        Raises:
            EngineError: The engine cannot be started, or ended by itself.
        """

        async def publish() -> None:
            await self._publish(registration)

        async with (
            controlled(self._directory, self._traffic, publish),
            nullcontext() if self._nodes is None else self._nodes.following(discovery),
            self._supervisor.running(
                publish, stop.immediate.is_set, on_start=self._use, on_end=self._sources.retire
            ) as ended,
            tasks.restarting(self._watchdog(publish).run, name="the watchdog of the engine"),
            tasks.restarting(
                partial(self._sources.fetch, self._supervisor.ready),
                name="the fetching of the engine's page",
            ),
        ):
            await tasks.first_of(stop.requested, ended)
            if ended.done():
                await publish()
                # Time to send the errors of the requests in flight.
                await self.endpoint.in_flight.drain(stop, 1.0)
                raise ended.result()
            self._supervisor.stop_restarts()
            self._traffic.end("the worker is ending")
            await publish()
            if self._nodes is not None and self.record.node_rank:
                limit = self._options.drain_delay + self._options.drain_timeout + END_GRACE_SECONDS
                await self._nodes.let_node_0_finish(stop, ended, within=limit)
                return
            await stop.delay(self._traffic.delay_left)
            await self.endpoint.in_flight.drain(stop, self._options.drain_timeout)

    def _watchdog(self, publish: OnChange) -> Watchdog | NodeWatchdog:
        """Return the object that watches the engine, or its processes if it is not asked."""
        lifecycle = self._supervisor.lifecycle
        incidents = Incidents(lifecycle, publish, self._write_stacks)
        if self._nodes is not None and self.record.node_rank:
            return NodeWatchdog(
                lifecycle,
                incidents,
                enabled=self._options.health_check.enabled,
                hang_seconds=self._options.hang_timeout,
                group=self._nodes.group,
            )
        return Watchdog(
            lifecycle,
            incidents,
            self._engine_client,
            self._options.health_check,
            hang_seconds=self._options.hang_timeout,
            take_progress=self.endpoint.take_progress,
            on_progress=lambda rank: self._engine_metrics.note_progress(str(rank), time.time()),
        )

    async def _write_stacks(self, reason: str) -> None:
        """Write the stacks of the engine's processes to a file, and log its path."""
        try:
            path = await write_stacks(
                await asyncio.to_thread(children.descendant_pids),
                python=self._options.engine_python,
                worker=hexadecimal(self.record.id),
                reason=reason,
                deadline=_STACKS_SECONDS,
            )
        except DynamometerError as error:
            action = f"could not write the stacks of the engine: {error}"
            logger.warning("%s", action)
        else:
            action = f"wrote the stacks of the engine to {path}"
            logger.info("%s", action)
        self._supervisor.lifecycle.note_attempt(time.time(), action)

    async def _publish(self, registration: Registration) -> None:
        """Write the state of the supervisor to the page and to discovery."""
        supervisor = self._supervisor
        if supervisor.state is State.READY:
            version = supervisor.info.get(ENGINE_VERSION, "")
            self._build.show_loaded(supervisor.load_seconds, engine_version=str(version))
        self.record = replace(
            self.record,
            state=supervisor.state,
            since=supervisor.lifecycle.since,
            models=supervisor.models.names or self.record.models,
            model_info=dict(supervisor.models.cards),
            engine_info=supervisor.info,
            epoch=0 if self._nodes is None else self._nodes.group.epoch,
        )
        try:
            await registration.update(self.record)
        except DiscoveryError as error:
            logger.warning("%s; trying again", error)
