"""An HTTP server on asyncio's protocols, which answers the requests of a connection in order.

A handler runs in its own task. When a client closes its connection, or its sending side, the server
cancels the handler, so that the engine aborts at once. The connection is read while a handler
runs, because only a read detects that the client has disconnected.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dynamometer.http.exchange import Application, Request, Stream
from dynamometer.http.messages import (
    BODILESS,
    LONGEST_HEAD,
    Header,
    Headers,
    Refusal,
    Response,
    response_head,
)
from dynamometer.http.request_parser import RequestParser

# The most bytes of further requests that are held while a request is answered.
_MOST_AHEAD: Final = 2**16
# Bytes are parsed in slices of this size, so that few requests are parsed ahead.
_SLICE: Final = 2**13
_BACKLOG: Final = 2048
_PROBES: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a connection.

    Attributes:
        body_bytes: the most bytes of a request's body.
        head_bytes: the most bytes of a request's headers.
        idle_seconds: the longest time between two requests, and the longest time that a client may
            take to read the last response.
        head_seconds: the longest time from the first byte of a head to the last.
        body_seconds: the longest pause between two pieces of a body.
        linger_seconds: the time for which the rest of a refused request is read and ignored, so
            that the client reads the response before the connection closes; and the time that
            clients have to read their responses when the server ends.
    """

    body_bytes: int
    head_bytes: int = LONGEST_HEAD
    idle_seconds: float = 75.0
    head_seconds: float = 30.0
    body_seconds: float = 60.0
    linger_seconds: float = 2.0


class _Wait(Enum):
    """The phases of a connection that have a deadline."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


class _Connection(asyncio.Protocol):
    """One client's connection. All state belongs to the event loop."""

    def __init__(
        self, application: Application, limits: Limits, connections: set[_Connection]
    ) -> None:
        """Wait for the first request.

        Args:
            application: the handlers of the requests.
            limits: the limits of the connection.
            connections: the set that contains this connection while it is open.
        """
        self._application = application
        self._limits = limits
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser(self, limits.body_bytes, limits.head_bytes)
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        # Bytes that were received and not parsed yet.
        self._ahead = b""
        self._read_paused = self._write_paused = False
        self._waits_for: _Wait | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None  # set by `connection_lost`

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self._transport = transport  # type: ignore[assignment]  # of a stream: a Transport
        self._connections.add(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and start to answer the next request."""
        self._ahead += data
        self._parse()

    def _parse(self) -> None:
        """Parse until a request waits for its turn; pause reading while many bytes are unparsed."""
        data, at = self._ahead, 0
        while at < len(data) and not self._parser.requests:
            if self._request is not None and self._request.complete:
                break
            self._parser.feed(data[at : at + _SLICE])
            at += _SLICE
            self._answer_next()
        self._ahead = data[at:]
        self._watch()
        full = len(self._ahead) > _MOST_AHEAD
        transport = self._transport
        if full is self._read_paused or transport is None or transport.is_closing():
            return
        self._read_paused = full
        if full:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Cancel the handler: a client that closes its sending side has usually disconnected.

        A probe that sends a GET and closes its sending side (`nc -N`) gets its response.
        """
        request, transport = self._request, self._transport
        if request is not None and request.complete and request.method in _PROBES:
            self._parser.ended = True
            return transport is not None and transport.can_write_eof()  # not with TLS
        self._cancel()
        return False

    def pause_writing(self) -> None:
        """Pause the source of the response's body: the client reads too slowly."""
        self._write_paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume_writing(self) -> None:
        """Resume the source of the response's body."""
        self._write_paused = False
        if self._stream is not None:
            self._stream.resume()
        self._answer_next()
        self._parse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the handler, and release the connection's resources."""
        del exc
        self._cancel()
        self._connections.discard(self)
        self._parser.close()
        self._ahead = b""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _cancel(self) -> None:
        """Ignore all further bytes of the client, and cancel the handler."""
        self._parser.ended = True
        if self._stream is not None:
            self._stream.disconnected = True
        if self._task is not None:
            self._task.cancel()

    # The current request.

    def _answer_next(self) -> None:
        """Start the next handler, unless a handler runs or the client reads too slowly."""
        if self._request is None and self._parser.requests and not self._write_paused:
            self._request = self._parser.requests.popleft()
            self._task = self._loop.create_task(self._answer(self._request))

    async def _answer(self, request: Request) -> None:
        try:
            if request.invalid and request.refusal is not None:
                response: Response | None = self._application.refuse(request.refusal)
            else:
                response = await self._application.answer(request)
            if response is not None and self._stream is None:
                self._send(request, response)
        finally:
            self._finish(request)

    def _send(self, request: Request, response: Response) -> None:
        """Send a whole response."""
        request.keep_alive = request.keep_alive and not response.close
        head = self._head(request, response.status, response.headers, len(response.body), b"")
        transport = self._open_transport()
        body = b"" if request.method == "HEAD" else response.body
        transport.writelines((head, body))
        self._stream = Stream(transport, chunked=False)
        self._stream.end()

    def begin(
        self, request: Request, status: int, headers: Headers, length: int | None, reason: bytes
    ) -> Stream:
        """Send a response's head; see `Request.begin`."""
        transport = self._open_transport()
        transport.write(self._head(request, status, headers, length, reason))
        chunked = length is None and request.chunked and status not in BODILESS
        self._stream = Stream(
            transport,
            chunked=chunked and request.method != "HEAD",
            paused=self._write_paused,  # by the head, behind an earlier response
        )
        return self._stream

    def _open_transport(self) -> asyncio.Transport:
        if self._transport is None:
            raise asyncio.CancelledError  # the client has disconnected: the task is cancelled
        return self._transport

    def _head(
        self, request: Request, status: int, headers: Headers, length: int | None, reason: bytes
    ) -> bytes:
        own: list[Header] = [*request.response_headers]
        if status not in BODILESS:
            if length is not None:
                own.append((b"content-length", b"%d" % length))
            elif request.chunked:
                own.append((b"transfer-encoding", b"chunked"))
            else:  # HTTP/1.0: the end of the connection is the end of the body
                request.keep_alive = False
        if not request.complete or (self._parser.ended and not self._parser.requests):
            request.keep_alive = False
        if not request.keep_alive:
            own.append((b"connection", b"close"))
        elif not request.chunked:
            own.append((b"connection", b"keep-alive"))
        return response_head(status, headers, own, reason)

    def send_continue(self) -> None:
        """Ask the client for the body that it waits to send."""
        if self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _finish(self, request: Request) -> None:
        """Answer the next request, or close the connection."""
        transport, stream = self._transport, self._stream
        self._request = self._task = self._stream = None
        if transport is None or transport.is_closing():
            return
        if stream is None or not stream.ended:
            transport.abort()  # the announced body cannot be completed
        elif request.keep_alive:
            self._answer_next()
            self._parse()
        elif request.complete:
            self._close(transport)
        else:
            self._linger(transport)

    def _close(self, transport: asyncio.Transport) -> None:
        """Close the connection after the client has read its response, or after a timeout."""
        self._parser.ended = True
        transport.close()
        if transport.get_write_buffer_size():
            self._set_timer(self._limits.idle_seconds, transport.abort)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Let a client that is still sending read the response before the connection closes."""
        self._parser.ended = True
        self._parse()
        if transport.can_write_eof():
            transport.write_eof()
        self._set_timer(self._limits.linger_seconds, lambda: self._close(transport))

    def shutdown(self) -> None:
        """Close the connection: at once if a handler runs, else after its responses were read."""
        if self._transport is not None and self._task is None:
            self._close(self._transport)
        elif self._transport is not None:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once, and cancel its handler."""
        self._cancel()
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed and its handler has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._transport is not None:
            self._closed = self._loop.create_future()
            await self._closed

    # Deadlines.

    def _watch(self) -> None:
        """Set the deadline of the current phase."""
        request = self._request
        if request is not None:
            wait = None if request.complete else _Wait.BODY
        elif self._parser.ended:
            return
        else:
            wait = _Wait.HEAD if self._parser.in_head else _Wait.IDLE
        if wait is self._waits_for and wait is not _Wait.BODY:
            return
        self._waits_for = wait
        limits = self._limits
        if wait is _Wait.IDLE:
            self._set_timer(limits.idle_seconds, self._expire)
        elif wait is _Wait.HEAD:
            self._set_timer(limits.head_seconds, self._expire)
        elif wait is _Wait.BODY:
            self._set_timer(limits.body_seconds, self._expire)
        elif self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, action)

    def _expire(self) -> None:
        """Close the connection, or refuse the request, at the deadline of the current phase."""
        if self._waits_for is _Wait.IDLE and self._transport is not None:
            self._close(self._transport)
        elif self._waits_for is _Wait.HEAD:
            self._parser.refuse(Refusal(408, "The request's head was not sent in time"))
            self._answer_next()
            self._watch()
            if self._request is None and self._transport is not None:
                self._close(self._transport)  # the client does not read its last response
        elif self._request is not None:
            self._parser.ended = True
            self._request.refuse(Refusal(408, "The request's body was not sent in time"))


@asynccontextmanager
async def serving(
    application: Application,
    listener: socket.socket,
    *,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """Answer requests on `listener` while the context is open.

    The end of the context cancels the requests in flight.

    Args:
        application: the handlers of the requests.
        listener: a bound socket.
        limits: the limits of each connection.
        tls: the certificate, for HTTPS.
    """
    connections: set[_Connection] = set()
    loop = asyncio.get_running_loop()
    accepting = await loop.create_server(
        lambda: _Connection(application, limits, connections),
        sock=listener,
        ssl=tls,
        backlog=_BACKLOG,
    )
    try:
        yield
    finally:
        accepting.close()
        await _end(connections, limits)


async def _end(connections: set[_Connection], limits: Limits) -> None:
    """Close all connections; clients have `linger_seconds` to read the rest of their responses."""
    for connection in list(connections):
        connection.shutdown()
    try:
        async with asyncio.timeout(limits.linger_seconds):
            await asyncio.gather(*(connection.wait_closed() for connection in list(connections)))
    except TimeoutError:
        for connection in list(connections):
            connection.abort()
