"""The system server of a user's own process, which runs in a thread."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType

from aiohttp import web

from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving

logger = logging.getLogger(__name__)


class SystemServer:
    """A server that runs until `close` or the end of the process.

    One thread at a time may call `close`.

    Attributes:
        url: the base URL of the server; None if DYN_SYSTEM_PORT=-1 disables the server.
    """

    def __init__(self, app: web.Application, listener: socket.socket | None) -> None:
        """Start the server.

        Args:
            app: the application to serve.
            listener: the listening socket; None starts no server.

        Raises:
            OSError: The thread cannot serve, for example because file descriptors are exhausted.
        """
        self.url = None if listener is None else addresses.url(listener)
        self._started: Future[asyncio.AbstractEventLoop] = Future()  # the thread sets the result
        self._closing = asyncio.Event()
        self._thread: threading.Thread | None = None
        if listener is not None:
            self._thread = threading.Thread(
                target=self._run, args=(app, listener), name="system", daemon=True
            )
            try:
                self._thread.start()
                self._started.result()
            except Exception:
                if self._thread.is_alive():
                    self._thread.join()
                listener.close()
                raise
            except BaseException:  # Ctrl-C
                self.close()
                raise
            logger.info("metrics and health: %s/metrics", self.url)

    def _run(self, app: web.Application, listener: socket.socket) -> None:
        try:
            asyncio.run(self._serve(app, listener))
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)  # `__init__` raises the error

    async def _serve(self, app: web.Application, listener: socket.socket) -> None:
        async with serving(app, listener):
            self._started.set_result(asyncio.get_running_loop())
            await self._closing.wait()

    def close(self) -> None:
        """Stop the server, and wait for its thread; a second call returns at once.

        A call that was interrupted may be repeated.
        """
        if self._thread is not None:
            loop = self._started.result()
            with suppress(RuntimeError):  # the loop is closed: the thread is ending
                loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> SystemServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
