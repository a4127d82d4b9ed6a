"""The system server: `/metrics`, `/health`, `/live`. Nothing there changes anything."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from dynamometer.errors import AddressError
from dynamometer.http import addresses
from dynamometer.metrics import scraping
from dynamometer.metrics.page import MetricsPage
from dynamometer.runtime.record import State
from dynamometer.settings import DEFAULT_SYSTEM_PORT, HealthSettings

logger = logging.getLogger(__name__)

_FLAGS: Final = ("--system-host, DYN_SYSTEM_HOST", "--system-port, DYN_SYSTEM_PORT")
_NO_ENDPOINT: Final = (
    "this process has no such endpoint (yet); DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS waits for it"
)
_READY: Final = "ready"
_NOT_READY: Final = "notready"
DEFAULT_HEALTH: Final = HealthSettings()


class SystemStatus:
    """What `/health` and `/live` answer from."""

    def __init__(
        self,
        state: Callable[[], State],
        endpoints: Callable[[], Mapping[str, State]],
        reasons: Callable[[], Mapping[str, str]] = dict,
        health: HealthSettings = DEFAULT_HEALTH,
    ) -> None:
        """Begin to count the uptime.

        Args:
            state: the process's state at the time of the question.
            endpoints: that of each endpoint, or engine, by name.
            reasons: why, by name, of those that are not ready; where there is something to say.
            health: what the environment says of it.
        """
        self.health = health
        self._endpoints = endpoints
        self._state = state
        self._reasons = reasons
        self._begun = time.monotonic_ns()

    @property
    def ready(self) -> bool:
        """Whether all is well, or may be called so while the process starts.

        Where endpoints are waited for, they alone say so, as `body` names them; but a process that
        ends is not ready.
        """
        state = self._state()
        if self.health.endpoints and state is not State.DRAINING:
            endpoints = self._called()
            return all(endpoints[name] == _READY for name in self.health.endpoints)
        if state is State.STARTING:
            return self.health.ready_at_start
        return state is State.READY

    def _called(self) -> dict[str, str]:
        """What each endpoint is called.

        As the peer's: until it was ready for the first time one that is waited for is called what
        the environment says of the start, and others are not named. But where another has failed,
        nobody starts any more.
        """
        starts_ready = self.health.ready_at_start and self._state() is not State.FAILED
        at_start = _READY if starts_ready else _NOT_READY
        return dict.fromkeys(self.health.endpoints, at_start) | {
            name: _READY if state is State.READY else _NOT_READY
            for name, state in self._endpoints().items()
            if state is not State.STARTING
        }

    def body(self, status: str) -> Mapping[str, object]:
        """A JSON body in the peer's form; `reasons` is ours."""
        secs, nanos = divmod(time.monotonic_ns() - self._begun, 10**9)
        endpoints = self._called()
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
    """The system server's application."""

    async def health(_: web.Request) -> web.Response:
        ready = status.ready
        body = status.body(_READY if ready else _NOT_READY)
        return web.json_response(body, status=200 if ready else 503)

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
    """The system server's socket; None for no server.

    Args:
        host: the address.
        port: 0 is any free one, -1 none at all; None, where nobody asked for one, is 8081, or
            any free one where that is taken.
        settings: what the user would change, for the messages: of the host, and of the port.

    Raises:
        SettingsError: the host is none of this machine's.
        AddressError: the port cannot be listened on.
    """
    if port == -1:
        return None
    of_host, of_port = settings
    if port is not None:
        return addresses.listen(host, port, setting=of_port, host_setting=of_host)
    try:
        return addresses.listen(host, DEFAULT_SYSTEM_PORT, setting=of_port, host_setting=of_host)
    except AddressError:
        listener = addresses.listen(host, 0, setting=of_port, host_setting=of_host)
        logger.warning(
            "port %d is taken: /metrics and /health of this process are at %s instead; "
            "DYN_SYSTEM_PORT chooses a port",
            DEFAULT_SYSTEM_PORT,
            addresses.url(listener),
        )
        return listener
