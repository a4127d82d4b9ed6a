"""The ops listener of a frontend: routes for Prometheus and for operators.

None of these routes is on the API's port, because clients of the API must not read them. A frontend
of several processes has one ops listener, in its supervisor.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

from dynamometer.errors import DiscoveryError
from dynamometer.frontend.fleet_fetches import FleetFetches
from dynamometer.frontend.fleet_loads import FleetLoads
from dynamometer.frontend.fleet_page import FleetPage
from dynamometer.http import addresses, aiohttp_adapter, server
from dynamometer.http.exchange import Handler, Request
from dynamometer.http.handlers import scrapes_by
from dynamometer.http.messages import Refusal, Response
from dynamometer.metrics.page_limit import DEFAULT_MAX_PAGE_BYTES
from dynamometer.process.background import BackgroundThread
from dynamometer.runtime.discovery.interface import RESTORE_SECONDS, Discovery, Processes
from dynamometer.runtime.record import Json, Record, Role
from dynamometer.runtime.scrape_targets import metrics_endpoints, target_groups, with_pages
from dynamometer.variables import DEFAULT_OPS_PORT

logger = logging.getLogger(__name__)

_SETTINGS: Final = ("--ops-host, DYN_OPS_HOST", "--ops-port, DYN_OPS_PORT")
# Prometheus refuses the response of a service discovery with another type.
_JSON: Final = (b"content-type", b"application/json")
_MOST_BODY_BYTES: Final = 2**16
# Shorter than the 75 s after which a worker closes an idle connection, longer than most intervals
# between two scrapes.
_IDLE_SECONDS: Final = 65.0


class OpsListener:
    """The listener of a frontend, which users can switch off.

    Attributes:
        url: the URL; None without a listener.
    """

    def __init__(self, host: str, port: int | None) -> None:
        """Open the port; see `addresses.listen_optionally`.

        Raises:
            SettingsError: The host is not an address of this machine.
            AddressError: The port is not available.
        """
        self._port = port
        self._listener = addresses.listen_optionally(
            host, port, default=DEFAULT_OPS_PORT, settings=_SETTINGS
        )
        self._routes = OpsRoutes(allowed_names(self._listener, host))
        self.url = None if self._listener is None else addresses.url(self._listener)

    @asynccontextmanager
    async def serving(
        self, discovery: Discovery, own: Record, *, max_page_bytes: int = DEFAULT_MAX_PAGE_BYTES
    ) -> AsyncIterator[None]:
        """Answer requests while the context is open.

        Args:
            discovery: shows the processes.
            own: the record of this frontend, which discovery shows, too.
            max_page_bytes: the size of the page of all engines; see `FleetPage`.
        """
        if self._listener is None:
            yield
            return
        async with AsyncExitStack() as stack:
            known = KnownProcesses(discovery, own)
            thread = BackgroundThread("fleet")
            session = await stack.enter_async_context(
                aiohttp_adapter.session(keepalive_seconds=_IDLE_SECONDS)
            )
            fetches = FleetFetches(known.with_engines, session, thread)
            stack.push_async_callback(fetches.close)
            page = FleetPage(fetches, thread, own_id=own.id, max_bytes=max_page_bytes)
            routes = self._routes
            routes.get("/sd", _shows(known, target_groups))
            routes.get("/metrics_endpoints", _shows(known, metrics_endpoints))
            routes.get("/engine_metrics", scrapes_by(page.render))
            routes.get("/loads", _loads(FleetLoads(fetches, thread)))
            limits = server.Limits(body_bytes=_MOST_BODY_BYTES)
            await stack.enter_async_context(server.serving(routes, self._listener, limits=limits))
            yield

    def announce(self) -> None:
        """Log the address; called when the frontend accepts requests."""
        if self._listener is not None:
            addresses.warn_of_another_port(
                self._listener,
                self._port,
                default=DEFAULT_OPS_PORT,
                served="the ops routes",
                setting=_SETTINGS[1],
            )
            logger.info("ops routes at %s: %s", self.url, ", ".join(self._routes.paths))


class OpsRoutes:
    """The handlers of GET by path; errors are JSON objects that name the routes."""

    def __init__(self, names: frozenset[str] | None = None) -> None:
        """Create an empty table.

        Args:
            names: the host names in a request's `Host`, in lower case; addresses are always
                allowed. None for any name.
        """
        self._names = names
        self._handlers: dict[str, Handler] = {}

    @property
    def paths(self) -> list[str]:
        """The paths of all routes."""
        return list(self._handlers)

    def get(self, path: str, handler: Handler) -> None:
        """Answer GET and HEAD at `path`."""
        self._handlers[path] = handler

    async def answer(self, request: Request) -> Response | None:
        """Answer one request; see `Application.answer`."""
        host = request.headers.get(b"host").decode("latin-1")
        if self._names is not None and not _is_allowed(host, self._names):
            error = f"the host {host[:200]!r} is not allowed: use the address, or localhost"
            return _json({"error": error}, 403)
        handler = self._handlers.get(request.path)
        if handler is None:
            error = f"no such route: {request.path[:200]}"
            return _json({"error": error, "routes": list(self._handlers)}, 404)
        if request.method not in ("GET", "HEAD"):
            answer = _json({"error": f"{request.method} is not allowed: use GET"}, 405)
            answer.headers.append((b"allow", b"GET, HEAD"))
            return answer
        try:
            await request.read()
            return await handler(request)
        except Refusal as refusal:
            return self.refuse(refusal)
        except DiscoveryError as error:
            return _json({"error": f"the processes are not known yet: {error}"}, 503)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return _json({"error": "internal error: see the log of the frontend"}, 500)

    def refuse(self, refusal: Refusal) -> Response:
        """Return the response to a request that cannot be read."""
        return _json({"error": str(refusal)}, refusal.status)


def allowed_names(listener: socket.socket | None, host: str) -> frozenset[str] | None:
    """Return the names that a request's `Host` may have; None if `listener` is for other machines.

    A web page whose own name is made to resolve to 127.0.0.1 (DNS rebinding) must not read the
    routes. Other machines may have any name for this one, such as that of a service.
    """
    if listener is None or not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        return None
    return frozenset({"localhost", socket.gethostname().lower(), host.lower()})


def _is_allowed(host: str, names: frozenset[str]) -> bool:
    """Return whether a `Host` is an address, is one of `names`, or is missing (HTTP/1.0)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name.removesuffix(".") not in names:
            ipaddress.ip_address(name)
    except ValueError:
        return not host
    return True


class KnownProcesses:
    """The processes in discovery, or the last known ones while discovery cannot be read."""

    def __init__(self, discovery: Discovery, own: Record) -> None:
        """Store the arguments; each call of `read` reads discovery."""
        self._discovery = discovery
        self._own = own
        self._last: Processes | None = None

    async def read(self) -> Processes:
        """Return the processes.

        A registry without this frontend was emptied, or was not written yet: other processes are
        missing there, too. They can still be missing when this frontend has restored its record, so
        they stay until `RESTORE_SECONDS` later.

        Raises:
            DiscoveryError: Discovery could not be read since the start of the frontend.
        """
        try:
            now = await self._discovery.processes()
            if all(record.id != self._own.id for record in now.live):
                raise DiscoveryError("discovery: does not show this frontend yet")
        except DiscoveryError:
            if self._last is None:
                raise
        else:
            if time.monotonic() - self._discovery.restored_at < RESTORE_SECONDS and self._last:
                now = _with_missing(now, self._last)
            self._last = now
        return self._last

    async def with_engines(self) -> list[Record]:
        """Return the processes whose pages have engine families: all except frontends.

        Raises:
            DiscoveryError: See `read`.
        """
        processes = await self.read()
        without_page = [record for record in processes.live if record.system_url is None]
        found = (*with_pages(processes), *without_page)
        return [record for record in found if record.role != Role.FRONTEND]


def _with_missing(now: Processes, before: Processes) -> Processes:
    """Return `now` with those live processes of `before` that are not in it."""
    ids = {record.id for record in (*now.live, *now.vanished)}
    missing = {record for record in before.live if record.id not in ids}
    return Processes(now.live | missing, now.vanished)


def _shows(known: KnownProcesses, content: Callable[[Processes], Json]) -> Handler:
    """Return a handler that shows the processes."""

    async def handle(_: Request) -> Response:
        return _json(content(await known.read()))

    return handle


def _loads(loads: FleetLoads) -> Handler:
    async def handle(_: Request) -> Response:
        return Response(200, await loads.read(), [_JSON])

    return handle


def _json(content: Json, status: int = 200) -> Response:
    return Response(status, json.dumps(content).encode(), [_JSON])
