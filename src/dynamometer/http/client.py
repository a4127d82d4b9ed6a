"""An HTTP client for the next hop, which keeps a connection only where that is safe.

A connection is used again only if the whole request was sent and no byte followed the last reply,
and never after a status of 500 or more: an engine's server may close such a connection although the
reply announces that the connection stays open.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import urlsplit

import httptools

from dynamometer.http.messages import Headers, request_head
from dynamometer.http.reply import BrokenError, Reply
from dynamometer.metrics.remote_page import connection_fault

_CONNECT_SECONDS: Final = 10.0
_LONGEST_HEAD: Final = 2**18


class NotReachedError(Exception):
    """No byte of the request was sent, because no connection was made, or because it was closed."""


class _NotReadError(Exception):
    """The next hop has closed the connection and did not read the whole request.

    A kernel resets a connection when a process closes it while bytes are unread. After a request
    that was read completely, the end of a process only ends its connection.
    """


@dataclass(frozen=True, slots=True)
class _Address:
    host: str
    port: int
    tls: bool
    header: bytes
    path: bytes


@lru_cache(maxsize=1024)
def _address(base: str) -> _Address:
    parts = urlsplit(base)
    tls = parts.scheme == "https"
    host = parts.hostname or ""
    port = parts.port or (443 if tls else 80)
    return _Address(host, port, tls, parts.netloc.encode(), parts.path.rstrip("/").encode())


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    """Return the context of all connections; it is made once, because it reads many files."""
    return ssl.create_default_context()


class Connection(Protocol):
    """An open connection, for one request; either `send` or `release` is called once."""

    async def send(self, target: bytes, headers: Headers, body: bytes) -> Reply:
        """Send a request, and return the reply when its head was received.

        A request that a kept connection did not read is sent again, on a new connection. The
        cancellation of this call closes the connection.

        Args:
            target: path and query.
            headers: without `Host` and `Content-Length`.
            body: the whole body.

        Raises:
            NotReachedError: The connection was closed before the request was sent.
            BrokenError: The connection broke before the reply; the next hop may have the request.
        """

    def release(self) -> None:
        """Keep the connection for another request: this request is not sent."""


class Client:
    """Connections to the next hops, by their URLs. All state belongs to the event loop."""

    def __init__(self, *, idle_seconds: float) -> None:
        """Keep connections for later requests.

        Args:
            idle_seconds: the time that an unused connection is kept; shorter than the servers' own.
        """
        self._idle_seconds = idle_seconds
        self._idle: defaultdict[str, list[_Connection]] = defaultdict(list)
        self._open: set[_Connection] = set()

    async def post(self, base: str, target: bytes, headers: Headers, body: bytes) -> Reply:
        """Send a request, and return the reply when its head was received.

        Args:
            base: the URL of the next hop.
            target: path and query.
            headers: without `Host` and `Content-Length`.
            body: the whole body.

        Raises:
            NotReachedError: No connection was made, or it was closed before the request was sent.
            BrokenError: The connection broke before the reply; the next hop may have the request.
        """
        return await (await self.open(base)).send(target, headers, body)

    async def open(self, base: str) -> Connection:
        """Return an idle connection to a next hop, or a new one.

        Raises:
            NotReachedError: No connection was made.
        """
        return self._take_idle(base) or await self.connect(base)

    def _take_idle(self, base: str) -> _Connection | None:
        idle = self._idle.get(base)
        while idle:
            connection = idle.pop()
            if connection.usable:
                connection.take()
                return connection
            connection.close()
        return None

    async def connect(self, base: str) -> _Connection:
        """Return a new connection to a next hop.

        Raises:
            NotReachedError: No connection was made.
        """
        address = _address(base)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, base),
                    address.host,
                    address.port,
                    ssl=_tls_context() if address.tls else None,
                )
        except TimeoutError as error:
            raise NotReachedError(f"no connection in {_CONNECT_SECONDS:g} s") from error
        except OSError as error:
            raise NotReachedError(connection_fault(error)) from error
        return connection

    def keep(self, connection: _Connection, base: str) -> asyncio.TimerHandle:
        """Keep an unused connection; return the timer that closes it."""
        self._idle[base].append(connection)
        loop = asyncio.get_running_loop()
        return loop.call_later(self._idle_seconds, connection.close)

    def track(self, connection: _Connection) -> None:
        """Add a new connection to the open connections."""
        self._open.add(connection)

    def forget(self, connection: _Connection, base: str) -> None:
        """Remove a closed connection from the open and the idle ones."""
        self._open.discard(connection)
        idle = self._idle.get(base)
        if idle is not None:
            if connection in idle:
                idle.remove(connection)
            if not idle:
                del self._idle[base]

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection to the next hop."""

    def __init__(self, client: Client, base: str) -> None:
        self._client = client
        self._base = base
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._head: asyncio.Future[Reply] | None = None
        self._reply: Reply | None = None
        self._reason = b""
        self._headers = Headers()
        self._head_size = 0
        self._in_head = False
        self._parts: list[bytes] = []
        self._was_idle = self._received = self._complete = self._keep = False

    @property
    def usable(self) -> bool:
        """True if the connection is open and nothing was received since the last reply."""
        if self._transport is None or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def take(self) -> None:
        """Stop the timer that closes an idle connection."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def release(self) -> None:
        """Keep the connection for another request; see `Connection`."""
        if self._transport is not None and not self._transport.is_closing():
            self._was_idle = True
            self._idle_timer = self._client.keep(self, self._base)

    async def send(self, target: bytes, headers: Headers, body: bytes) -> Reply:
        """Send a request; see `Connection`."""
        address = _address(self._base)
        head = request_head(b"POST", address.path + target, address.header, headers, len(body))
        try:
            return await self._send(head, body)
        except _NotReadError as error:
            if not self._was_idle:
                raise NotReachedError(str(error)) from error
        connection = await self._client.connect(self._base)
        return await connection.send(target, headers, body)

    async def _send(self, head: bytes, body: bytes) -> Reply:
        if self._transport is None or self._transport.is_closing():
            raise _NotReadError("the connection was closed as soon as it was made")
        self._received = False
        received: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._head = received
        self._transport.writelines((head, body))
        try:
            return await received
        except asyncio.CancelledError:
            # After a complete reply, another request may already use the connection.
            if not received.done() or received.cancelled():
                self.close()
            elif received.exception() is None:
                received.result().close()
            raise

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # of a client: a Transport
        self._client.track(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or (self._head is None and self._reply is None):
            self.close()  # bytes without a request
            return
        self._received = True
        error = self._parse(data)
        reply, parts = self._reply, self._parts
        if reply is not None and parts:
            reply.receive(parts[0] if len(parts) == 1 else b"".join(parts))
            parts.clear()
        if reply is not None and self._complete:
            self._keep = self._keep and error is None
            self._finish(reply)
        elif error is not None:
            self._fail(error)

    def _parse(self, data: bytes) -> BrokenError | None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return BrokenError("the reply switches to another protocol")
        except httptools.HttpParserError as error:
            return BrokenError(f"the reply is not valid HTTP: {error}")
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > _LONGEST_HEAD:
                return BrokenError(f"the head of the reply exceeds {_LONGEST_HEAD} bytes")
        return None

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.forget(self, self._base)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._reply is not None and self._ends_with_connection(self._reply, exc):
            self._reply.end()
        else:
            unread = self._was_idle and not self._received and isinstance(exc, ConnectionError)
            text = connection_fault(exc) if exc else "Server disconnected"
            self._fail(_NotReadError(text) if unread else BrokenError(text))
        self._transport = self._parser = None  # the parser and this object refer to each other

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._complete:
            raise BrokenError("bytes follow the reply")
        self._in_head = True
        self._head_size = 0
        self._reason = b""
        self._headers = Headers()

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._in_head = False
        status = self._parser.get_status_code()
        if status < 200:
            return  # an interim reply: the final reply follows
        self._keep = status < 500 and self._parser.should_keep_alive()
        self._reply = Reply(self, status, self._reason, self._headers)
        if self._head is not None and not self._head.done():
            self._head.set_result(self._reply)

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        self._complete = self._reply is not None

    def _finish(self, reply: Reply) -> None:
        """Keep the connection after a complete reply, or close it."""
        self._reply = self._head = None
        self._complete = False
        self._was_idle = True
        reply.end()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._keep and not transport.get_write_buffer_size():
            transport.resume_reading()
            self._idle_timer = self._client.keep(self, self._base)
        else:
            self.close()

    def _ends_with_connection(self, reply: Reply, exc: Exception | None) -> bool:
        chunked = b"chunked" in reply.headers.tokens(b"transfer-encoding")
        return exc is None and reply.length is None and not chunked

    def _fail(self, error: Exception) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
        if self._reply is not None:
            self._reply.end(error)
        self._reply = self._head = None
        self.close()
