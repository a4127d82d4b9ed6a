"""Servers and client sessions of aiohttp: pages, probes and simulated engines.

The modules `server` and `client` serve and forward the requests for inference.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from dynamometer.http.messages import LONGEST_HEAD, LONGEST_LINE


@asynccontextmanager
async def serving(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Answer requests to `app` on `listener` while the context is open.

    When a client closes its connection, the server cancels the handler. The handler then closes
    its own connection to the next hop, so that the engine aborts the request. The end of the
    context cancels the requests in flight.
    """
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=75,
        # aiohttp would decompress a body of any size on the event loop.
        auto_decompress=False,
        shutdown_timeout=0.5,
        # A simulated engine accepts the headers that a worker accepted.
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
        max_headers=LONGEST_HEAD,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


def session(
    *,
    keepalive_seconds: float | None,
    middlewares: Sequence[aiohttp.ClientMiddlewareType] = (),
) -> aiohttp.ClientSession:
    """Return a client session without a limit of connections and without a timeout of responses.

    Args:
        keepalive_seconds: the time that an idle connection stays open, shorter than the server
            keeps it open: else the server may close a connection while the next request is sent.
            With None, each request opens a new connection.
        middlewares: aiohttp's client middlewares, called for each request.
    """
    connector = (
        aiohttp.TCPConnector(limit=0, force_close=True)
        if keepalive_seconds is None
        else aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_seconds)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=2**18,
        middlewares=middlewares,
    )
