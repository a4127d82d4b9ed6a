"""The system server of a user's own process: in a thread, beside whatever else it does."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from types import TracebackType

from aiohttp import web

from dynamometer.runtime import addresses
from dynamometer.runtime.servers import serving

logger = logging.getLogger(__name__)


class SystemServer:
    """Serves until it is closed, or the process ends.

    Attributes:
        url: where it listens; None where DYN_SYSTEM_PORT=-1 says that there is to be no server.
    """

    def __init__(self, app: web.Application, listener: socket.socket | None) -> None:
        """Serve from now on.

        Args:
            app: what is served.
            listener: where; None: nowhere.
        """
        self.url = None if listener is None else addresses.url(listener)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        if listener is not None:
            self._thread = threading.Thread(
                target=asyncio.run, args=(self._serve(app, listener),), name="system", daemon=True
            )
            self._thread.start()
            self._begun.wait()
            logger.info("metrics and health: %s/metrics", self.url)

    async def _serve(self, app: web.Application, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        try:
            async with serving(app, listener):
                self._begun.set()
                await self._closing.wait()
        finally:
            self._begun.set()  # who waits is not to wait for what has failed

    def close(self) -> None:
        """Stop serving; once more does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None and self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            thread.join()

    def __enter__(self) -> SystemServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
