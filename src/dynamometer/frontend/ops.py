"""The ops listener of a frontend: routes for Prometheus and for operators.

None of these routes is on the API's port, because clients of the API must not read them. A frontend
of several processes has one ops listener, in its supervisor.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from dynamometer.errors import DiscoveryError
from dynamometer.http import addresses, server
from dynamometer.http.exchange import Handler, Request
from dynamometer.http.messages import Refusal, Response
from dynamometer.runtime.discovery.interface import Discovery, Processes
from dynamometer.runtime.record import Json, Record
from dynamometer.runtime.scrape_targets import metrics_endpoints, target_groups
from dynamometer.variables import DEFAULT_OPS_PORT

logger = logging.getLogger(__name__)

_SETTINGS: Final = ("--ops-host, DYN_OPS_HOST", "--ops-port, DYN_OPS_PORT")
# Prometheus refuses the response of a service discovery with another type.
_JSON: Final = (b"content-type", b"application/json")
_MOST_BODY_BYTES: Final = 2**16


def listen(host: str, port: int | None) -> socket.socket | None:
    """Return the listening socket; see `addresses.listen_optionally`."""
    return addresses.listen_optionally(
        host, port, default=DEFAULT_OPS_PORT, served="the ops routes", settings=_SETTINGS
    )


@asynccontextmanager
async def serving(
    listener: socket.socket | None, discovery: Discovery, own: Record
) -> AsyncIterator[None]:
    """Answer the ops routes while the context is open.

    Args:
        listener: the listening socket; None for no ops listener.
        discovery: shows the processes.
        own: the record of this frontend, which discovery shows, too.
    """
    if listener is None:
        yield
        return
    routes = OpsRoutes()
    known = KnownProcesses(discovery, own)
    routes.get("/sd", _shows(known, target_groups))
    routes.get("/metrics_endpoints", _shows(known, metrics_endpoints))
    limits = server.Limits(body_bytes=_MOST_BODY_BYTES)
    async with server.serving(routes, listener, limits=limits):
        logger.info("ops routes at %s: %s", addresses.url(listener), ", ".join(routes.paths))
        yield


class OpsRoutes:
    """The handlers of GET by path; errors are JSON objects that name the routes."""

    def __init__(self) -> None:
        """Create an empty table."""
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
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return _json({"error": "internal error: see the log of the frontend"}, 500)

    def refuse(self, refusal: Refusal) -> Response:
        """Return the response to a request that cannot be read."""
        return _json({"error": str(refusal)}, refusal.status)


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
        missing there, too.

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
            self._last = now
        return self._last


def _shows(known: KnownProcesses, content: Callable[[Processes], Json]) -> Handler:
    """Return a handler that shows the processes; 503 while they are unknown."""

    async def handle(_: Request) -> Response:
        try:
            processes = await known.read()
        except DiscoveryError as error:
            reason = f"the processes are not known yet: {error}"
            return _json({"error": reason}, 503)
        return _json(content(processes))

    return handle


def _json(content: Json, status: int = 200) -> Response:
    return Response(status, json.dumps(content).encode(), [_JSON])
