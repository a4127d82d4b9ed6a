"""The composition of a frontend, and its routes about the fleet."""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from dynamometer.engines import kinds
from dynamometer.errors import SettingsError
from dynamometer.frontend.canary import Canary
from dynamometer.frontend.forwarding import Forwarder
from dynamometer.frontend.load_poller import LoadPoller
from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.http import addresses, openai_errors, relay
from dynamometer.http.servers import serving
from dynamometer.metrics import scraping
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import frontend_service, name_prefix
from dynamometer.process.signals import Stop
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.discovery.follower import Follower
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.runtime.record import Record, Role, State

logger = logging.getLogger(__name__)

# Shorter than the 75 s after which a worker closes an idle connection.
_WORKER_KEEPALIVE_SECONDS: Final = 30.0
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


async def serve(options: FrontendOptions) -> None:
    """Run a frontend until a signal ends it.

    Raises:
        DynamometerError: The frontend cannot start, for example because its port is in use.
    """
    _check_prefix(options.metrics_prefix)
    stop = Stop()
    runtime = DistributedRuntime()
    metrics = FrontendMetrics(
        runtime.registry, prefix=options.metrics_prefix, bounds=options.buckets
    )
    canary = Canary(runtime.registry, prefix=options.metrics_prefix)
    discovery = await connect(options.discovery_directory)
    listener = addresses.listen(
        options.host,
        options.port,
        setting="--http-port, DYN_HTTP_PORT",
        host_setting="--http-host, DYN_HTTP_HOST",
    )
    url = addresses.url(listener)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(discovery.register(_record(options, runtime, url)))
        session = await stack.enter_async_context(
            relay.client(keepalive_seconds=_WORKER_KEEPALIVE_SECONDS)
        )
        fleet = Fleet(namespace=options.namespace, engines=kinds.ENGINES)
        follower = Follower(discovery, fleet)
        router = Router(options.router_mode, fleet)
        frontend = Frontend(follower=follower, metrics=metrics, page=runtime.page)
        forwarder = Forwarder(
            routes=kinds.ROUTES,
            router=router,
            metrics=metrics,
            session=session,
            refresh=follower.refresh,
            max_body_size=options.max_body_size,
        )
        stack.callback(forwarder.close)
        await stack.enter_async_context(canary.watching())
        await follower.refresh()
        await stack.enter_async_context(follower.following())
        if options.router_mode is RouterMode.LEAST_LOADED:
            poller = LoadPoller(router, session)
            await stack.enter_async_context(poller.running())
        application = frontend.application(forwarder, options.max_body_size)
        stop_listening = await stack.enter_async_context(serving(application, listener))
        logger.info("OpenAI-compatible at %s/v1, metrics at %s/metrics", url, url)
        if not fleet.ready:
            logger.info("no worker yet: start one with `dyno %s --model MODEL`", kinds.DEFAULT.name)
        await stop.requested.wait()
        forwarder.draining = True
        await stop_listening()
        await forwarder.in_flight.drain(stop, options.drain_timeout)


def _record(options: FrontendOptions, runtime: DistributedRuntime, url: str) -> Record:
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


def _check_prefix(prefix: str) -> None:
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
    """

    def __init__(self, *, follower: Follower, metrics: FrontendMetrics, page: MetricsPage) -> None:
        """Show the fleet of `follower` on the frontend's routes, in `metrics` and in the log.

        Args:
            follower: updates the fleet from discovery.
            metrics: the families that show the fleet.
            page: the page of `/metrics`.
        """
        self.fleet = follower.fleet
        self._refresh = follower.refresh
        self._page = page
        metrics.follow(self.fleet)
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

    def application(self, forwarder: Forwarder, max_body_size: int) -> web.Application:
        """Return the application; every other route is answered with 404."""
        app = web.Application(client_max_size=max_body_size, middlewares=[openai_errors.middleware])
        for path in kinds.ROUTES:
            app.router.add_post(path, forwarder.handle)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/v1/models/{model:.+}", self._one)
        app.router.add_get("/health", self._health)
        app.router.add_get("/live", self._live)
        scraping.add_route(app, self._page)
        return app

    async def _list(self, _: web.Request) -> web.Response:
        await self._refresh()
        cards = list(self.fleet.models.values())
        return web.json_response({"object": "list", "data": cards})

    async def _one(self, request: web.Request) -> web.Response:
        await self._refresh()
        model = request.match_info["model"]
        name = self.fleet.resolve(model)
        if name is None or name not in self.fleet.models:
            return openai_errors.unknown_model(model)
        return web.json_response(self.fleet.models[name])

    async def _health(self, _: web.Request) -> web.Response:
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
        return web.json_response(
            {"status": "healthy", "endpoints": endpoints, "instances": instances}
        )

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "live", "message": "Service is live"})
