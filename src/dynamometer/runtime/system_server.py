"""The system server of a user's own process: in a thread, beside whatever else it does."""

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
from dynamometer.http.servers import serving

logger = logging.getLogger(__name__)


class SystemServer:
    """Serve until `close`, or the end of the process.

    The thread sets `_begun`; whoever owns the server calls `close`, from any one thread.

    Attributes:
        url: where it listens; None where DYN_SYSTEM_PORT=-1 says that there is to be no server.
    """

    def __init__(self, app: web.Application, listener: socket.socket | None) -> None:
        """Serve from now on.

        Args:
            app: what is served.
            listener: where; None: nowhere.

        Raises:
            OSError: the thread cannot serve, for want of descriptors for instance.
        """
        self.url = None if listener is None else addresses.url(listener)
        self._begun: Future[asyncio.AbstractEventLoop] = Future()
        self._closing = asyncio.Event()
        self._thread: threading.Thread | None = None
        if listener is not None:
            self._thread = threading.Thread(
                target=self._run, args=(app, listener), name="system", daemon=True
            )
            try:
                self._thread.start()
                self._begun.result()
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
            if self._begun.done():
                raise
            self._begun.set_exception(error)  # for the thread that waits for it

    async def _serve(self, app: web.Application, listener: socket.socket) -> None:
        async with serving(app, listener):
            self._begun.set_result(asyncio.get_running_loop())
            await self._closing.wait()

    def close(self) -> None:
        """Stop serving; once more does nothing. May be called again after an interrupt."""
        if self._thread is not None:
            loop = self._begun.result()
            with suppress(RuntimeError):  # the loop is closed: the thread ends, or has ended
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
