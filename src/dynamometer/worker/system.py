"""The system server: `/metrics`, `/health`, `/live`. Nothing there changes anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from aiohttp import web

from dynamometer.metrics import http
from dynamometer.metrics.page import MetricsPage
from dynamometer.runtime.record import State


class SystemStatus:
    """What `/health` and `/live` answer from."""

    def __init__(self, endpoint: str, state: Callable[[], State]) -> None:
        """Begin to count the uptime.

        Args:
            endpoint: the name of the endpoint that the worker serves.
            state: the worker's state at the time of the question.
        """
        self._endpoint = endpoint
        self._state = state
        self._begun = time.monotonic_ns()

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self._state() is State.READY

    def body(self, status: str) -> Mapping[str, object]:
        """A JSON body in the peer's form."""
        secs, nanos = divmod(time.monotonic_ns() - self._begun, 10**9)
        starting = self._state() is State.STARTING
        endpoints = {} if starting else {self._endpoint: "ready" if self.ready else "notready"}
        return {
            "status": status,
            "uptime": {"secs": secs, "nanos": nanos},
            "endpoints": endpoints,
        }


def application(page: MetricsPage, status: SystemStatus) -> web.Application:
    """The system server's application."""

    async def health(_: web.Request) -> web.Response:
        ready = status.ready
        body = status.body("ready" if ready else "notready")
        return web.json_response(body, status=200 if ready else 503)

    async def live(_: web.Request) -> web.Response:
        return web.json_response(status.body("live"))

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/live", live)
    http.add_route(app, page)
    return app
