"""The reply of the next hop; the callback that receives a piece of the body passes it on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from dynamometer.http.messages import BODILESS, Headers

Sink = Callable[[bytes], None]


class BrokenError(Exception):
    """The connection broke after the next hop may have received the request."""


class Receiver(Protocol):
    """The receiving side of a connection."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""

    def close(self) -> None:
        """Close the connection at once."""


class Reply:
    """A reply whose head was received.

    Attributes:
        status: the HTTP status.
        reason: the reason phrase.
        headers: the headers, as received.
        length: the length of the body in bytes; None if the head does not contain it.
        error: the error that ended the body; None without an error.
    """

    __slots__ = (
        "_connection", "_ended", "_parts", "_sink", "_start", "_waiter",
        "error", "headers", "length", "reason", "status",
    )  # fmt: skip

    def __init__(self, connection: Receiver, status: int, reason: bytes, headers: Headers) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._sink: Sink | None = None
        self._start: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self.error: BaseException | None = None
        self.status = status
        self.reason = reason
        self.headers = headers
        length = headers.get(b"content-length")
        self.length = int(length) if length else 0 if status in BODILESS else None

    async def read_into(self, sink: Sink) -> None:
        """Call `sink` with each piece of the body, inside the callback that received it.

        Raises:
            BrokenError: The connection broke before the end of the body.
        """
        parts, self._parts = self._parts, []
        self._sink = sink
        if parts:
            sink(b"".join(parts))
        if not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.error is not None:
            raise self.error

    def started(self) -> asyncio.Future[None]:
        """Return a future that is done when a piece of the body was received, or the body ended."""
        if self._start is None:
            self._start = asyncio.get_running_loop().create_future()
            if self._parts or self._ended:
                self._start.set_result(None)
        return self._start

    @property
    def complete(self) -> bool:
        """True if the whole body was received."""
        return self._ended and self.error is None

    def receive(self, data: bytes) -> None:
        """Pass a piece of the body to the sink; keep it until there is a sink."""
        if self._sink is None:
            self._parts.append(data)
            self._show_start()
            return
        try:
            self._sink(data)
        except BaseException as error:  # `read_into` raises it
            self.end(error)
            self.close()

    def end(self, error: BaseException | None = None) -> None:
        """Mark the body as complete, or as broken by `error`."""
        if self._ended:
            return
        self._ended = True
        self.error = error
        self._sink = _ignore
        self._show_start()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _show_start(self) -> None:
        if self._start is not None and not self._start.done():
            self._start.set_result(None)

    def pause(self) -> None:
        """Stop reading from the connection."""
        if not self._ended:
            self._connection.pause()

    def resume(self) -> None:
        """Read from the connection again."""
        if not self._ended:
            self._connection.resume()

    def close(self) -> None:
        """Close the connection if the body is incomplete; the next hop then aborts the request."""
        self._sink = _ignore
        if not self._ended:
            self._connection.close()


def _ignore(_: bytes) -> None:
    pass
