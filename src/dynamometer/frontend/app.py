"""The composition of a frontend, and its routes about the fleet."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from dynamometer.engines import kinds
from dynamometer.errors import SettingsError
from dynamometer.frontend import shared_port
from dynamometer.frontend.canary import Canary
from dynamometer.frontend.forwarding import Forwarder
from dynamometer.frontend.load_poller import LoadPoller
from dynamometer.frontend.member import Member, Membership, joined
from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.frontend.service_metrics import FrontendMetrics, restart_counter
from dynamometer.http import addresses, aiohttp_adapter, openai_errors
from dynamometer.http.client import Client
from dynamometer.http.exchange import Request
from dynamometer.http.handlers import Handlers, scrapes_of
from dynamometer.http.messages import Response
from dynamometer.http.origins import Origins
from dynamometer.http.server import Limits, serving
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.metrics.scraping import ScrapedPage
from dynamometer.names import frontend_service, name_prefix
from dynamometer.process.signals import Stop
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.discovery.follower import Follower
from dynamometer.runtime.discovery.interface import Discovery
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.runtime.record import Record, Role, State

logger = logging.getLogger(__name__)

# Shorter than the 75 s after which a worker closes an idle connection.
_WORKER_IDLE_SECONDS: Final = 30.0
_OTHER_PREFIXES: Final = (
    name_prefix.COMPONENT,
    name_prefix.REQUEST_PLANE,
    name_prefix.WORK_HANDLER,
    name_prefix.DYNAMOMETER,
    name_prefix.PROCESS,
)


@dataclass(frozen=True, kw_only=True)
class FrontendOptions:
    """The options of a frontend, from flags and variables. Port 0 is any free port."""

    host: str
    port: int
    namespace: str | None
    router_mode: RouterMode
    max_body_size: int
    drain_timeout: float
    discovery_directory: Path | None
    metrics_prefix: str
    buckets: FrontendBuckets
    allowed_origins: Sequence[str] = ()


async def serve(options: FrontendOptions) -> None:
    """Run a frontend until a signal ends it.

    Raises:
        DynamometerError: The frontend cannot start, for example because its port is in use.
    """
    check_prefix(options.metrics_prefix)
    stop = Stop()
    runtime = DistributedRuntime()
    restart_counter(runtime.registry)  # stays 0: one process is not restarted
    discovery = await connect(options.discovery_directory)
    listener = shared_port.listen(options.host, options.port)
    url = addresses.url(listener)
    async with discovery.register(record(options, runtime, url)):
        await _answer_requests(
            options, stop, discovery, listener, registry=runtime.registry, page=runtime.page
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
) -> None:
    """Answer requests until a signal, then wait for the requests in flight.

    Args:
        options: the options of the frontend.
        stop: the signals.
        discovery: shows the workers.
        listener: the listening socket.
        registry: the registry of the frontend's instruments.
        page: the page of the frontend.
        member: for one process of a frontend that has several; None for the only process.
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
        frontend = Frontend(follower=follower, metrics=metrics, page=page, member=member)
        forwarder = Forwarder(
            routes=kinds.ROUTES,
            router=router,
            metrics=metrics,
            client=client,
            refresh=follower.refresh,
            max_body_size=options.max_body_size,
            processes=processes,
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
        stop_listening = await stack.enter_async_context(
            serving(
                frontend.handlers(forwarder, Origins(options.allowed_origins)),
                listener,
                limits=Limits(body_bytes=options.max_body_size),
            )
        )
        if member is None:
            logger.info("OpenAI-compatible at %s/v1, metrics at %s/metrics", url, url)
        else:
            member.channel.send_ready()
        if not fleet.ready and frontend.logs_fleet:
            logger.info("no worker yet: start one with `dyno %s --model MODEL`", kinds.DEFAULT.name)
        await stop.requested.wait()
        forwarder.draining = True
        await stop_listening()
        await forwarder.in_flight.drain(stop, options.drain_timeout)


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
        state=State.READY,
        since=time.time(),
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
        logs_fleet: True if this process logs changes of the fleet: of several processes, one does.
    """

    def __init__(
        self,
        *,
        follower: Follower,
        metrics: FrontendMetrics,
        page: ScrapedPage,
        member: Member | None = None,
    ) -> None:
        """Show the fleet of `follower` on the frontend's routes, in `metrics` and in the log.

        Args:
            follower: updates the fleet from discovery.
            metrics: the families that show the fleet.
            page: the page of `/metrics`.
            member: for one process of a frontend that has several; None for the only process.
        """
        self.fleet = follower.fleet
        self.logs_fleet = member is None or member.number == 1
        self._member = member
        self._refresh = follower.refresh
        self._page = page
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
        for model in sorted(change.unserved):
            logger.info("no worker serves %s any longer", model)
        for model in sorted(change.models - self.fleet.models.keys() - change.unserved):
            logger.warning("%s is not served: %s", model, self.fleet.missing_reason(model))

    def handlers(self, forwarder: Forwarder, origins: Origins | None = None) -> Handlers:
        """Return the handlers; every other route is answered with 404.

        Args:
            forwarder: answers the inference routes.
            origins: whose web pages may read the responses; by default none.
        """
        handlers = Handlers(origins)
        for path in kinds.ROUTES:
            handlers.post(path, forwarder.handle)
        handlers.get("/v1/models", self._list)
        handlers.get("/v1/models/", self._one)
        handlers.get("/health", self._health)
        handlers.get("/live", self._live)
        handlers.get("/metrics", scrapes_of(self._page))
        return handlers

    async def _list(self, _: Request) -> Response:
        await self._refresh()
        cards = list(self.fleet.models.values())
        return Response.of_json({"object": "list", "data": cards})

    async def _one(self, request: Request) -> Response:
        await self._refresh()
        model = request.path.removeprefix("/v1/models/")
        name = self.fleet.resolve(model)
        if name is None or name not in self.fleet.models:
            return openai_errors.unknown_model(model)
        return Response.of_json(self.fleet.models[name])

    async def _health(self, _: Request) -> Response:
        await self._refresh()
        instances = [
            {
                "namespace": worker.namespace,
                "component": worker.component,
                "endpoint": worker.endpoint,
                "instance_id": worker.id,
                "transport": {"http": worker.request_url},
            }
            for worker in self.fleet.ready
        ]
        endpoints = sorted(
            {f"dyn://{i['namespace']}.{i['component']}.{i['endpoint']}" for i in instances}
        )
        health: dict[str, object] = {
            "status": "healthy",
            "endpoints": endpoints,
            "instances": instances,
        }
        if self._member is not None:
            health["processes"] = self._member.channel.state
        return Response.of_json(health)

    async def _live(self, _: Request) -> Response:
        return Response.of_json({"status": "live", "message": "Service is live"})
