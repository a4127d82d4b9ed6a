"""The control socket of a worker, through which `dyno drain` takes the worker out of traffic.

The socket is a Unix socket in the worker's private directory: only processes of the same user on
the same machine can connect, and no web page or other host can reach it.

    GET /drain      the state
    POST /drain     take the worker out of traffic
    DELETE /drain   put the worker back, unless it is ending

Each answer is the state afterwards, a `DrainStatus` in JSON.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from dynamometer.http.aiohttp_adapter import serving
from dynamometer.process import private_directories
from dynamometer.runtime.identity import hexadecimal
from dynamometer.worker.traffic import Traffic

logger = logging.getLogger(__name__)

ROUTE: Final = "/drain"
_NAME: Final = "control"
_REASON: Final = "taken out of traffic by dyno drain"


@dataclass(frozen=True, kw_only=True)
class DrainStatus:
    """The state of a worker, for `dyno drain`.

    Attributes:
        state: the state of the worker, a value of `State`.
        reason: the reason of the state; may be empty.
        accepts: the worker accepts new requests, for example during the drain delay.
        running: the number of requests that the worker is answering.
        drained: the worker is out of traffic.
        ending: the worker is ending.
    """

    state: str
    reason: str
    accepts: bool
    running: int
    drained: bool
    ending: bool


def socket_path(instance_id: int) -> Path:
    """Return the path of the control socket of a worker of this user.

    Raises:
        DirectoryError: The directory of this user's workers cannot be used.
    """
    return private_directories.create_memory() / hexadecimal(instance_id) / _NAME


@asynccontextmanager
async def controlled(
    directory: Path, traffic: Traffic, publish: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Answer `dyno drain` while the context is open.

    Args:
        directory: the private directory of the worker.
        traffic: accepts requests, or not.
        publish: called and awaited after a change, to write the state to discovery.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(directory / _NAME))
            listener.listen()
        except OSError as error:  # for example, the path is too long for a socket
            logger.warning(
                "dyno drain cannot reach this worker: %s: %s",
                directory / _NAME,
                error.strerror or error,
            )
            yield
            return
        listener.setblocking(False)
        async with serving(_application(traffic, publish), listener):
            yield


def _application(traffic: Traffic, publish: Callable[[], Awaitable[None]]) -> web.Application:
    def status() -> web.Response:
        current = DrainStatus(
            state=str(traffic.state),
            reason=traffic.reason,
            accepts=traffic.accepts,
            running=traffic.in_flight.count,
            drained=traffic.drained,
            ending=traffic.ending,
        )
        return web.json_response(asdict(current))

    async def show(_: web.Request) -> web.Response:
        return status()

    async def drain(_: web.Request) -> web.Response:
        if not traffic.drained:
            logger.info("dyno drain: this worker accepts no new requests")
            traffic.drain(_REASON)
            await publish()
        return status()

    async def restore(_: web.Request) -> web.Response:
        if traffic.drained and not traffic.ending:
            logger.info("dyno drain --undo: this worker accepts requests again")
            traffic.restore()
            await publish()
        return status()

    app = web.Application()
    app.router.add_get(ROUTE, show)
    app.router.add_post(ROUTE, drain)
    app.router.add_delete(ROUTE, restore)
    return app
