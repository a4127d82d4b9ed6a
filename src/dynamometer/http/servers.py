"""The server of an aiohttp application on a socket that already listens."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def serving(
    app: web.Application, listener: socket.socket
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Answer requests to `app` on `listener` while the context is open.

    When a client closes its connection, the server cancels the handler. The handler then closes
    its own connection to the next hop, so that the engine aborts the request. The end of the
    context cancels the requests in flight.

    Yields:
        A function that stops listening; open connections continue.
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
    )
    await runner.setup()
    try:
        site = web.SockSite(runner, listener)
        await site.start()
        yield site.stop
    finally:
        await runner.cleanup()
