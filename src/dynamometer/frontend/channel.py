"""The channel between a frontend's supervisor and one of its processes: a pair of sockets.

The process sends JSON lines: `{"ready": true}` when the process accepts requests, `{"page": ...}`
to request the page of the whole frontend, and `{"drained": true}` when the process is ending and
its last request has finished. A message of the supervisor has a kind, a length and a content: the
requested page, or the state of the whole frontend, which is sent at each change. The supervisor
closes the channel when all processes are drained.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Final

from dynamometer.exposition.filters import Selection
from dynamometer.metrics.refresh import PageRequest
from dynamometer.process import tasks

logger = logging.getLogger(__name__)

# A kind, and the length of the content.
_HEAD: Final = struct.Struct("!cQ")
_PAGE: Final = b"P"
_NO_PAGE: Final = b"N"
_STATE: Final = b"S"
# The longest line: a request with many `name[]`. A longer line ends the channel.
_LONGEST_LINE: Final = 2**20
_WAIT_SECONDS: Final = 60.0
_ENDED: Final = "the frontend's supervisor has ended"
_FAILED: Final = "the frontend's supervisor cannot render the page: see its log"


class SupervisorEnd:
    """The supervisor's end of a channel."""

    def __init__(self, connection: socket.socket) -> None:
        """Store the supervisor's socket; `serve` reads from it."""
        self._connection = connection
        self._writer: asyncio.StreamWriter | None = None

    async def serve(
        self,
        state: Mapping[str, object],
        *,
        ready: Callable[[], None],
        page: Callable[[PageRequest], Awaitable[bytes]],
        drained: Callable[[], None] = lambda: None,
    ) -> None:
        """Answer the process until the process closes its end.

        Args:
            state: the current state of the whole frontend.
            ready: called when the process accepts requests.
            page: returns the page of the whole frontend.
            drained: called when the process is ending, and its last request has finished.
        """
        reader, writer = await asyncio.open_connection(sock=self._connection, limit=_LONGEST_LINE)
        self._writer = writer
        self.send_state(state)
        try:
            while line := await reader.readline():
                request = json.loads(line)
                if "page" in request:
                    try:
                        _send(writer, _PAGE, await page(_page_request(request["page"])))
                    except Exception:
                        logger.exception("the page cannot be rendered")
                        _send(writer, _NO_PAGE, b"")
                    await writer.drain()
                elif "drained" in request:
                    drained()
                else:
                    ready()
        except (ConnectionError, ValueError):  # the process was killed, perhaps in mid-line
            pass
        finally:
            self._writer = None
            writer.close()

    def send_state(self, state: Mapping[str, object]) -> None:
        """Send the state of the whole frontend."""
        if self._writer is not None:
            _send(self._writer, _STATE, json.dumps(state).encode())

    def close(self) -> None:
        """Close the channel, so that a drained process ends."""
        if self._writer is not None:
            self._writer.close()


class ProcessEnd:
    """A process's end of a channel, with the supervisor's page as a `scraping.ScrapedPage`.

    Attributes:
        state: the state of the whole frontend, as last received.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Store the streams; `connected` creates this object."""
        self._reader = reader
        self._writer = writer
        # The event loop owns these attributes. The supervisor answers requests in their order.
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Future[bytes]] = deque()
        self._ended = asyncio.Event()
        self.state: Mapping[str, object] = {}

    @classmethod
    @asynccontextmanager
    async def connected(cls, connection: socket.socket) -> AsyncIterator[ProcessEnd]:
        """Read the supervisor's messages while the context is open.

        Args:
            connection: the process's socket.
        """
        reader, writer = await asyncio.open_connection(sock=connection)
        channel = cls(reader, writer)
        reading = asyncio.create_task(channel._read(), name="channel")
        try:
            yield channel
        finally:
            await tasks.end(reading)
            writer.close()

    def send_ready(self) -> None:
        """Report that this process accepts requests."""
        self._send({"ready": True})

    async def wait_for_others(self) -> None:
        """Report that this process is drained, and wait until all processes are."""
        self._send({"drained": True})
        await self._ended.wait()

    def submit(self, request: PageRequest, /) -> Future[bytes]:
        """Request the page; return the future of the bytes, which cannot be cancelled."""
        answer: Future[bytes] = Future()
        answer.set_running_or_notify_cancel()
        self._loop.call_soon_threadsafe(self._request, request, answer)
        return answer

    def wait_seconds(self) -> float:
        """Return the time between two calls of `give_up_late`."""
        return _WAIT_SECONDS

    def give_up_late(self) -> None:
        """Do nothing: the supervisor enforces the deadlines of its page."""

    def answer(self, request: PageRequest) -> bytes:
        """Request another form of the page, and wait for the bytes; called in a thread."""
        return self.submit(request).result()

    def _request(self, request: PageRequest, answer: Future[bytes]) -> None:
        if self._ended.is_set():
            answer.set_exception(ConnectionError(_ENDED))
            return
        self._pending.append(answer)
        form = {
            "names": sorted(request.selection.names),
            "openmetrics": request.openmetrics,
            "gzip": request.gzip,
        }
        self._send({"page": form})

    def _send(self, request: Mapping[str, object]) -> None:
        self._writer.write(json.dumps(request).encode() + b"\n")

    async def _read(self) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    kind, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
                    content = await self._reader.readexactly(length)
                    if kind == _STATE:
                        self.state = json.loads(content)
                    elif kind == _PAGE:
                        self._pending.popleft().set_result(content)
                    else:
                        self._pending.popleft().set_exception(RuntimeError(_FAILED))
        finally:
            self._ended.set()
            for answer in self._pending:
                answer.set_exception(ConnectionError(_ENDED))


def _send(writer: asyncio.StreamWriter, kind: bytes, content: bytes) -> None:
    writer.write(_HEAD.pack(kind, len(content)))
    writer.write(content)


def _page_request(form: Mapping[str, object]) -> PageRequest:
    names = form["names"]
    assert isinstance(names, list)
    return PageRequest(Selection.of(names=names), form["openmetrics"] is True, form["gzip"] is True)
