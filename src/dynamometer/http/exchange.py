"""A request on a connection, and the body of its response."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import unquote

from dynamometer.http.messages import Headers, Refusal, Response


class Flow(Protocol):
    """The source of a response's body, which pauses while its client reads too slowly."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""


class Request:
    """A request whose head was received.

    Attributes:
        method: the HTTP method, such as POST.
        path: decoded, without the query.
        query: as it was received, without the question mark.
        headers: as they were received.
        keep_alive: True if the connection may stay open after the response.
        chunked: True if the client reads chunked bodies (HTTP/1.1).
        expects: True if the client waits for `100 Continue` before it sends the body.
        complete: True if the whole body was received.
        invalid: True if the bytes are not a valid request, which no handler receives.
        refusal: the reason to refuse the request; None for a valid request.
        response_headers: headers that are added to each response to the request.
    """

    __slots__ = (
        "_body", "_connection", "_size", "_waiter", "chunked", "complete", "expects", "headers",
        "invalid", "keep_alive", "method", "path", "query", "refusal", "response_headers",
    )  # fmt: skip

    def __init__(self, connection: Sender, method: str, target: bytes, headers: Headers) -> None:
        self._connection = connection
        self._body = io.BytesIO()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        path, _, query = target.partition(b"?")
        self.method = method
        self.path = unquote(path.decode("utf-8", "replace"))
        self.query = query
        self.headers = headers
        self.keep_alive = self.chunked = self.expects = False
        self.complete = self.invalid = False
        self.refusal: Refusal | None = None
        self.response_headers = Headers()

    async def read(self) -> bytes:
        """Return the whole body, and release the memory of the body here.

        Raises:
            Refusal: The head or the body is too large, violates the protocol, or was late.
        """
        if not self.complete and self.refusal is None:
            if self.expects and not self._size:
                self._connection.send_continue()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.refusal is not None:
            raise self.refusal
        body, self._body = self._body, io.BytesIO()
        return body.getvalue()

    def begin(
        self, status: int, headers: Headers, *, length: int | None = None, reason: bytes = b""
    ) -> Stream:
        """Send the head of the response, and return the stream for its body.

        Args:
            status: the HTTP status.
            headers: the headers, without the connection's and without the length.
            length: the length of the body in bytes; None if unknown.
            reason: the reason phrase; if empty, the standard phrase.
        """
        return self._connection.begin(self, status, headers, length, reason)

    def receive(self, data: bytes, limit: int) -> None:
        """Add a piece of the body; refuse the request when its body exceeds `limit` bytes."""
        self._size += len(data)
        if self._size > limit:
            self.refuse(too_large(limit))
        elif self.refusal is None:
            self._body.write(data)

    def finish(self) -> None:
        """Mark the body as complete."""
        self.complete = True
        self._wake()

    def refuse(self, refusal: Refusal) -> None:
        """Let `read` raise `refusal`, unless the request was refused before."""
        if self.refusal is None:
            self.refusal = refusal
            self._body = io.BytesIO()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def too_large(limit: int) -> Refusal:
    """Return the refusal of a body of more than `limit` bytes."""
    return Refusal(413, f"The request body is too large: more than {limit} bytes (--max-body-size)")


class Stream:
    """The body of a response whose head was sent.

    Attributes:
        ended: True if the end of the body was sent.
        disconnected: True if the client has disconnected.
    """

    __slots__ = ("_chunked", "_flow", "_paused", "_transport", "disconnected", "ended")

    def __init__(
        self, transport: asyncio.Transport, *, chunked: bool, paused: bool = False
    ) -> None:
        self._transport = transport
        self._chunked = chunked
        self._paused = paused
        self._flow: Flow | None = None
        self.disconnected = self.ended = False

    @property
    def flow(self) -> Flow | None:
        """The source of the body, which pauses while the client reads too slowly."""
        return self._flow

    @flow.setter
    def flow(self, flow: Flow) -> None:
        self._flow = flow
        if self._paused:
            flow.pause()

    def pause(self) -> None:
        """Pause the source: the client reads too slowly."""
        self._paused = True
        if self._flow is not None:
            self._flow.pause()

    def resume(self) -> None:
        """Resume the source."""
        self._paused = False
        if self._flow is not None:
            self._flow.resume()

    @property
    def closed(self) -> bool:
        """True if the client cannot receive further bytes."""
        return self.disconnected or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send a piece of the body; the transport buffers it without waiting."""
        if not data or self.closed:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._transport.write(data)

    def end(self) -> None:
        """Send the end of the body."""
        if self._chunked and not self.closed:
            self._transport.write(b"0\r\n\r\n")
        self.ended = True


class Sender(Protocol):
    """The sending side of a connection."""

    def begin(
        self, request: Request, status: int, headers: Headers, length: int | None, reason: bytes
    ) -> Stream:
        """Send a response's head; see `Request.begin`."""

    def send_continue(self) -> None:
        """Send `100 Continue` to a client that waits before it sends the body."""


Handler = Callable[[Request], Awaitable[Response | None]]


class Application(Protocol):
    """The handlers of a server, and the form of its errors."""

    async def answer(self, request: Request) -> Response | None:
        """Answer a request; return None if `Request.begin` has sent the response."""

    def refuse(self, refusal: Refusal) -> Response:
        """Return the response to a request that is not valid."""
