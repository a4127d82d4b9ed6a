"""Running an aiohttp application on a socket that is already bound."""

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

    A client that goes away cancels its handler, which closes the connection to the next hop: so an
    abort reaches the engine. Requests that are to finish must be waited for inside the context.

    Yields:
        A function that stops listening; connections that are open go on.
    """
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=75,
        auto_decompress=False,  # a bomb would be decompressed on the event loop
        shutdown_timeout=0.5,
    )
    await runner.setup()
    try:
        site = web.SockSite(runner, listener)
        await site.start()
        yield site.stop
    finally:
        await runner.cleanup()
