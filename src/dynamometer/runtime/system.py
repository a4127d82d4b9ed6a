"""The system server: `/metrics`, `/health` and `/live`, all read-only."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from dynamometer.http import addresses
from dynamometer.metrics import scraping
from dynamometer.metrics.page import MetricsPage
from dynamometer.runtime.record import State
from dynamometer.settings import HealthSettings
from dynamometer.variables import DEFAULT_SYSTEM_PORT

_FLAGS: Final = ("--system-host, DYN_SYSTEM_HOST", "--system-port, DYN_SYSTEM_PORT")
_NO_ENDPOINT: Final = (
    "this process has no such endpoint (yet): DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS requires it"
)
_READY: Final = "ready"
_NOT_READY: Final = "notready"
DEFAULT_HEALTH: Final = HealthSettings()


class SystemStatus:
    """The state that `/health` and `/live` report."""

    def __init__(
        self,
        state: Callable[[], State],
        endpoints: Callable[[], Mapping[str, State]],
        reasons: Callable[[], Mapping[str, str]] = dict,
        health: HealthSettings = DEFAULT_HEALTH,
        details: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        """Store the arguments, and start to measure the uptime.

        Args:
            state: returns the state of the process.
            endpoints: returns the state of each endpoint or engine, by name.
            reasons: returns the known reasons why endpoints are not ready, by name of the endpoint.
            health: the settings of `/health` and `/live`.
            details: returns more members of `/health`, as of `Lifecycle.report`.
        """
        self.health = health
        self._endpoints = endpoints
        self._state = state
        self._reasons = reasons
        self._details = details
        self._started_at_ns = time.monotonic_ns()

    @property
    def ready(self) -> bool:
        """True if `/health` responds with status 200.

        If DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS names required endpoints, all of them must have the
        status `ready`. Otherwise the process itself must be ready; a process that is starting
        is treated as ready if DYN_SYSTEM_STARTING_HEALTH_STATUS=ready. A draining process is
        never ready.
        """
        state = self._state()
        if self.health.endpoints and state is not State.DRAINING:
            endpoints = self._statuses()
            return all(endpoints[name] == _READY for name in self.health.endpoints)
        if state is State.STARTING:
            return self.health.ready_at_start
        return state is State.READY

    def _statuses(self) -> dict[str, str]:
        """Return the status of each endpoint, as NVIDIA Dynamo does.

        An endpoint that is still starting is omitted, unless it is required. A required endpoint
        that is starting or missing has the status in DYN_SYSTEM_STARTING_HEALTH_STATUS, but
        `notready` if the process neither starts nor is ready.
        """
        living = self._state() in (State.STARTING, State.READY)
        starts_ready = self.health.ready_at_start and living
        at_start = _READY if starts_ready else _NOT_READY
        return dict.fromkeys(self.health.endpoints, at_start) | {
            name: _READY if state is State.READY else _NOT_READY
            for name, state in self._endpoints().items()
            if state is not State.STARTING
        }

    def health_body(self) -> Mapping[str, object]:
        """Return the JSON body of `/health`."""
        status = _READY if self.ready else _NOT_READY
        return {**self.body(status), **self._details()}

    def body(self, status: str) -> Mapping[str, object]:
        """Return the fields of NVIDIA Dynamo's response, and `reasons`."""
        secs, nanos = divmod(time.monotonic_ns() - self._started_at_ns, 10**9)
        endpoints = self._statuses()
        missing = {name for name in self.health.endpoints if endpoints[name] != _READY}
        missing -= self._endpoints().keys()
        reasons = dict.fromkeys(sorted(missing), _NO_ENDPOINT) | dict(self._reasons())
        return {
            "status": status,
            "uptime": {"secs": secs, "nanos": nanos},
            "endpoints": endpoints,
            **({"reasons": reasons} if reasons else {}),
        }


def application(page: MetricsPage, status: SystemStatus) -> web.Application:
    """Return the application with the routes of the system server."""

    async def health(_: web.Request) -> web.Response:
        return web.json_response(status.health_body(), status=200 if status.ready else 503)

    async def live(_: web.Request) -> web.Response:
        return web.json_response(status.body("live"))

    app = web.Application()
    app.router.add_get(status.health.path, health)
    app.router.add_get(status.health.live_path, live)
    scraping.add_route(app, page)
    return app


def listen(
    host: str,
    port: int | None,
    *,
    settings: tuple[str, str] = _FLAGS,
) -> socket.socket | None:
    """Return the listening socket of the system server; None if `port` disables the server.

    Args:
        host: the address to listen on.
        port: see `addresses.listen_optionally`; by default 8081.
        settings: the names of the flags and variables for host and port, for messages.

    Raises:
        SettingsError: The host is not an address of this machine.
        AddressError: The port is not available.
    """
    return addresses.listen_optionally(
        host, port, default=DEFAULT_SYSTEM_PORT, settings=settings, served="/metrics and /health"
    )
