"""The composition of a frontend, and its routes about the fleet."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from dynamometer.engines import kinds
from dynamometer.errors import DiscoveryError, SettingsError
from dynamometer.frontend import shared_port
from dynamometer.frontend.canary import Canary
from dynamometer.frontend.forwarding import Forwarder
from dynamometer.frontend.load_poller import LoadPoller
from dynamometer.frontend.member import Member, Membership, joined
from dynamometer.frontend.ops import OpsListener
from dynamometer.frontend.probes import Probes
from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.frontend.service_metrics import FrontendMetrics, restart_counter
from dynamometer.http import addresses, aiohttp_adapter, openai_errors
from dynamometer.http.client import Client
from dynamometer.http.exchange import Request
from dynamometer.http.handlers import Handlers, scrapes_by
from dynamometer.http.messages import Response
from dynamometer.http.origins import Origins
from dynamometer.http.server import Limits, serving
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.metrics.page_limit import DEFAULT_MAX_PAGE_BYTES
from dynamometer.metrics.scraping import ScrapedPage, Scrapes
from dynamometer.names import frontend_service, name_prefix
from dynamometer.process.signals import Stop
from dynamometer.process.tasks import restarting
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.discovery.follower import Follower
from dynamometer.runtime.discovery.interface import Discovery, Registration
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.runtime.record import DECODE, PREFILL, Record, Role, State
from dynamometer.variables import (
    FRONTEND_PATHS,
    HTTP_HEALTH_PATH,
    HTTP_LIVE_PATH,
    HTTP_METRICS_PATH,
    HTTP_READY_PATH,
    LOOPBACK,
)

logger = logging.getLogger(__name__)

# Shorter than the 75 s after which a worker closes an idle connection.
_WORKER_IDLE_SECONDS: Final = 30.0
_MODELS_PATH: Final = "/v1/models"
_OTHER_PREFIXES: Final = (
    name_prefix.COMPONENT,
    name_prefix.REQUEST_PLANE,
    name_prefix.WORK_HANDLER,
    name_prefix.DYNAMOMETER,
    name_prefix.PROCESS,
)


@dataclass(frozen=True, kw_only=True)
class FrontendOptions:
    """The options of a frontend, from flags and variables. Port 0 is any free port.

    Attributes:
        ops_port: -1 for no ops listener; None if no port was requested: 8002, or any free port if
            8002 is in use.
    """

    host: str
    port: int
    ops_host: str = LOOPBACK
    ops_port: int | None = None
    namespace: str | None
    router_mode: RouterMode
    max_body_size: int
    drain_delay: float
    drain_timeout: float
    discovery_directory: Path | None
    metrics_prefix: str
    buckets: FrontendBuckets
    max_page_bytes: int = DEFAULT_MAX_PAGE_BYTES
    allowed_origins: Sequence[str] = ()
    forward_custom_labels: bool = False
    paths: Mapping[str, str] = field(default_factory=lambda: FRONTEND_PATHS)


async def serve(options: FrontendOptions) -> None:
    """Run a frontend until a signal ends it.

    Raises:
        DynamometerError: The frontend cannot start, for example because its port is in use.
    """
    check(options)
    stop = Stop()
    runtime = DistributedRuntime()
    runtime.page.limit_size(options.max_page_bytes)
    restart_counter(runtime.registry)  # stays 0: one process is not restarted
    discovery = await connect(options.discovery_directory)
    listener = shared_port.listen(options.host, options.port)
    ops = OpsListener(options.ops_host, options.ops_port)
    own = record(options, runtime, addresses.url(listener))
    async with (
        ops.serving(discovery, own, max_page_bytes=options.max_page_bytes),
        discovery.register(own) as registration,
        restarting(partial(show_draining, stop, registration, own), name="draining"),
    ):
        await _answer_requests(
            options,
            stop,
            discovery,
            listener,
            registry=runtime.registry,
            page=runtime.page,
            ops=ops,
        )


async def serve_member(options: FrontendOptions, membership: Membership) -> None:
    """Run one process of a frontend that has several, until a signal ends it.

    Args:
        options: the options of the frontend.
        membership: the values from the supervisor.

    Raises:
        DynamometerError: The process cannot start.
    """
    stop = Stop(supervised=True)
    discovery = await connect(options.discovery_directory)
    async with joined(membership) as member:
        await _answer_requests(
            options,
            stop,
            discovery,
            member.listener,
            registry=CollectorRegistry(),
            page=member.channel,
            member=member,
        )


async def _answer_requests(
    options: FrontendOptions,
    stop: Stop,
    discovery: Discovery,
    listener: socket.socket,
    *,
    registry: CollectorRegistry,
    page: ScrapedPage,
    member: Member | None = None,
    ops: OpsListener | None = None,
) -> None:
    """Answer requests until a signal, then wait for the requests in flight.

    All routes answer until the end; `/health` with 503 after the signal, and inference routes with
    503 after the drain delay.

    Args:
        options: the options of the frontend.
        stop: the signals.
        discovery: shows the workers.
        listener: the listening socket.
        registry: the registry of the frontend's instruments.
        page: the page of the frontend.
        member: for one process of a frontend that has several; None for the only process.
        ops: the ops listener of the only process.
    """
    url = addresses.url(listener)
    processes = member.count if member else 1
    metrics = FrontendMetrics(registry, prefix=options.metrics_prefix, bounds=options.buckets)
    canary = Canary(registry, prefix=options.metrics_prefix)
    async with AsyncExitStack() as stack:
        client = Client(idle_seconds=_WORKER_IDLE_SECONDS)
        stack.callback(client.close)
        fleet = Fleet(namespace=options.namespace, engines=kinds.ENGINES)
        follower = Follower(discovery, fleet)
        router = Router(options.router_mode, fleet, processes=processes)
        frontend = Frontend(
            follower=follower, metrics=metrics, page=page, member=member, paths=options.paths
        )
        forwarder = Forwarder(
            routes=kinds.ROUTES,
            router=router,
            metrics=metrics,
            client=client,
            refresh=follower.refresh,
            max_body_size=options.max_body_size,
            processes=processes,
            forward_custom_labels=options.forward_custom_labels,
        )
        stack.callback(forwarder.close)
        await stack.enter_async_context(canary.watching())
        await follower.refresh()
        await stack.enter_async_context(follower.following())
        if options.router_mode is RouterMode.LEAST_LOADED:
            session = await stack.enter_async_context(
                aiohttp_adapter.session(keepalive_seconds=_WORKER_IDLE_SECONDS)
            )
            poller = LoadPoller(router, session)
            await stack.enter_async_context(poller.running())
        await stack.enter_async_context(
            serving(
                frontend.handlers(forwarder, Origins(options.allowed_origins)),
                listener,
                limits=Limits(body_bytes=options.max_body_size),
            )
        )
        if member is None:
            metrics_url = url + options.paths[HTTP_METRICS_PATH]
            logger.info("OpenAI-compatible at %s/v1, metrics at %s", url, metrics_url)
            if ops is not None:
                ops.announce()
        else:
            member.channel.send_ready()
        if not fleet.ready and frontend.logs_fleet:
            logger.info("no worker yet: start one with `dyno %s --model MODEL`", kinds.DEFAULT.name)
        await stop.requested.wait()
        frontend.probes.draining = forwarder.closes_connections = True
        await stop.delay(options.drain_delay)
        forwarder.draining = True
        await forwarder.in_flight.drain(stop, options.drain_timeout)
        if member is not None:
            await member.channel.wait_for_others()


def record(options: FrontendOptions, runtime: DistributedRuntime, url: str) -> Record:
    """Return the record of a frontend in discovery.

    Args:
        options: the options of the frontend.
        runtime: the runtime, which has the id of the frontend.
        url: the URL of the frontend's port.
    """
    return Record(
        role=Role.FRONTEND,
        id=runtime.instance_id,
        namespace=options.namespace or "",
        component="frontend",
        request_url=url,
        system_url=url,
        metrics_path=options.paths[HTTP_METRICS_PATH],
        state=State.READY,
        since=time.time(),
    )


async def show_draining(stop: Stop, registration: Registration, record: Record) -> None:
    """Wait for the signal that ends a frontend, and show in discovery that it is ending."""
    await stop.requested.wait()
    try:
        await registration.update(replace(record, state=State.DRAINING, since=time.time()))
    except DiscoveryError as error:
        logger.warning("%s", error)


def check(options: FrontendOptions) -> None:
    """Check values of variables that a parser cannot check alone.

    Raises:
        SettingsError: The prefix of families or a path is in use for something else.
    """
    check_prefix(options.metrics_prefix)
    check_paths(options.paths)


def check_paths(paths: Mapping[str, str]) -> None:
    """Check that the paths of pages and probes differ from each other and from other routes.

    Args:
        paths: the paths, by the variable that sets each.

    Raises:
        SettingsError: Two routes have the same path.
    """
    for variable, path in paths.items():
        if path in kinds.ROUTES or f"{path}/".startswith(f"{_MODELS_PATH}/"):
            raise SettingsError(
                f"{variable}={path!r}: the OpenAI-compatible API has this route: choose another "
                f"path, such as /custom/{path.rpartition('/')[2]}"
            )
        equal = [other for other in paths if paths[other] == path]
        if len(equal) > 1:
            given = " and ".join(
                f"{name}={path!r}" for name in equal if path != FRONTEND_PATHS[name]
            )
            raise SettingsError(
                f"{given}: the pages and probes of a frontend need different paths; the defaults "
                f"are {', '.join(FRONTEND_PATHS.values())}"
            )


def check_prefix(prefix: str) -> None:
    """Check that names with this prefix cannot equal names of other families.

    Raises:
        SettingsError: Other families have a name that starts with the prefix.
    """
    others = (
        *(f"{other}_" for other in _OTHER_PREFIXES),
        *kinds.METRIC_PREFIXES,
    )
    if f"{prefix}_".startswith(others):
        raise SettingsError(
            f"{frontend_service.METRICS_PREFIX_ENV}={prefix!r}: must not begin with the prefix "
            f"of other families: {', '.join(others)}"
        )


class Frontend:
    """The frontend's routes about the fleet, and the log of its changes.

    Attributes:
        fleet: the workers.
        probes: the answers to probes.
        logs_fleet: True if this process logs changes of the fleet: of several processes, one does.
    """

    def __init__(
        self,
        *,
        follower: Follower,
        metrics: FrontendMetrics,
        page: ScrapedPage,
        member: Member | None = None,
        paths: Mapping[str, str] = FRONTEND_PATHS,
    ) -> None:
        """Show the fleet of `follower` on the frontend's routes, in `metrics` and in the log.

        Args:
            follower: updates the fleet from discovery.
            metrics: the families that show the fleet.
            page: the page of `/metrics`.
            member: for one process of a frontend that has several; None for the only process.
            paths: the paths of pages and probes, by the variable that sets each.
        """
        self.fleet = follower.fleet
        self.logs_fleet = member is None or member.number == 1
        self.probes = Probes(self.fleet, member)
        self._paths = paths
        self._refresh = follower.refresh
        self._page = page
        # The ids of ready workers that get no requests, by model and mode.
        self._unused: dict[tuple[str, str], frozenset[int]] = {}
        metrics.follow(self.fleet)
        if self.logs_fleet:
            self.fleet.on_change(self._log)

    def _log(self, change: Change) -> None:
        for record in (*change.joined, *change.changed):
            reason = self.fleet.unusable_reason(record)
            if reason is not None:
                logger.warning("instance %016x receives no requests: %s", record.id, reason)
        for model in sorted(change.served):
            logger.info("serving %s", model)
        for model in sorted(change.models - self.fleet.models.keys()):
            one_side = any(self.fleet.workers(model, mode) for mode in (PREFILL, DECODE))
            if one_side or model not in change.unserved:
                logger.warning("%s is not served: %s", model, self.fleet.missing_reason(model))
            else:
                states = self.fleet.describe_other_states(model)
                logger.info("no worker serves %s any longer%s", model, states)
        for model in sorted(change.models):
            for mode in (PREFILL, DECODE):
                self._log_unused(model, mode)

    def _log_unused(self, model: str, mode: str) -> None:
        """Log that workers of a mode begin to get no requests."""
        before = self._unused.pop((model, mode), frozenset())
        workers, reason = self.fleet.unused(model, mode)
        unused = frozenset(record.id for record in workers)
        if unused:
            self._unused[model, mode] = unused
        if unused - before:
            subject = f"{mode} worker gets" if len(unused) == 1 else f"{mode} workers get"
            logger.warning("%d %s no requests for %s: %s", len(unused), subject, model, reason)

    def handlers(self, forwarder: Forwarder, origins: Origins | None = None) -> Handlers:
        """Return the handlers; every other route is answered with 404.

        Args:
            forwarder: answers the inference routes.
            origins: whose web pages may read the responses; by default none.
        """
        handlers = Handlers(origins)
        for path in kinds.ROUTES:
            handlers.post(path, forwarder.handle)
        handlers.get(_MODELS_PATH, self._list)
        handlers.get(f"{_MODELS_PATH}/", self._one)
        handlers.get(self._paths[HTTP_HEALTH_PATH], self.probes.health)
        handlers.get(self._paths[HTTP_LIVE_PATH], self.probes.live)
        handlers.get(self._paths[HTTP_READY_PATH], self.probes.ready)
        handlers.get(self._paths[HTTP_METRICS_PATH], scrapes_by(Scrapes(self._page).render))
        return handlers

    async def _find_fault(self) -> Response | None:
        """Read discovery; return an error if that fails and no model is known."""
        await self._refresh()
        if self.fleet.models or not self.fleet.fault():
            return None
        return openai_errors.unavailable(self.fleet.missing_reason(None))

    async def _list(self, _: Request) -> Response:
        if fault := await self._find_fault():
            return fault
        cards = list(self.fleet.models.values())
        return Response.of_json({"object": "list", "data": cards})

    async def _one(self, request: Request) -> Response:
        if fault := await self._find_fault():
            return fault
        model = request.path.removeprefix(f"{_MODELS_PATH}/")
        name = self.fleet.resolve(model)
        if name is None or name not in self.fleet.models:
            return openai_errors.unknown_model(model, fault=self.fleet.fault())
        return Response.of_json(self.fleet.models[name])
