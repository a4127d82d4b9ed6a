"""HTTP messages: headers, responses, and the bytes of their heads.

Header names are kept in lower case: HTTP ignores their case.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

Header = tuple[bytes, bytes]

# Limits of a request's headers, in bytes: of one header, and of all headers together.
LONGEST_LINE: Final = 2**15
LONGEST_HEAD: Final = 2**16
JSON: Final = (b"content-type", b"application/json; charset=utf-8")
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
# Statuses whose messages have no body (RFC 9110, 6.4.1).
BODILESS: Final = frozenset({204, 304})


class Headers(list[Header]):
    """The headers of a message in their order, with names in lower case."""

    __slots__ = ()

    def get(self, name: bytes) -> bytes:
        """Return the first value of the header `name`; empty if the message does not have it."""
        for known, value in self:
            if known == name:
                return value
        return b""

    def all(self, name: bytes) -> bytes:
        """Return all values of the header `name` as one list, separated by commas."""
        return b", ".join(value for known, value in self if known == name)

    def tokens(self, name: bytes) -> set[bytes]:
        """Return the members of a list of tokens, such as `Connection`, in lower case."""
        return {token.strip().lower() for token in self.all(name).split(b",")} - {b""}

    @property
    def media_type(self) -> bytes:
        """The `Content-Type` without its parameters, in lower case."""
        return self.get(b"content-type").partition(b";")[0].strip().lower()

    @property
    def compressed(self) -> bool:
        """True if the body has a content encoding."""
        return self.get(b"content-encoding").strip().lower() not in (b"", b"identity")


class Response:
    """A response with its whole body.

    Attributes:
        status: the HTTP status.
        body: the body.
        headers: the headers, without the connection's and without `Content-Length`.
        close: True if the connection closes after this response.
    """

    __slots__ = ("body", "close", "headers", "status")

    def __init__(
        self, status: int, body: bytes, headers: Iterable[Header] = (), *, close: bool = False
    ) -> None:
        self.status = status
        self.body = body
        self.headers = Headers(headers)
        self.close = close

    @classmethod
    def of_json(cls, content: object, status: int = 200) -> Response:
        """Return a response with `content` as JSON."""
        return cls(status, json.dumps(content).encode(), [JSON])


class Refusal(Exception):  # noqa: N818  # not a fault of this program
    """A request that the server refuses; the message is for the client.

    Attributes:
        status: the HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def response_head(
    status: int, headers: Sequence[Header], own: Sequence[Header] = (), reason: bytes = b""
) -> bytes:
    """Return the bytes of a response's head.

    Args:
        status: the HTTP status.
        headers: the message's headers; a `Date` is added if it is missing.
        own: the headers of the connection and of the body's length.
        reason: the reason phrase; if empty, the standard phrase.
    """
    lines = [b"HTTP/1.1 %d %b" % (status, reason or _REASONS.get(status, b"Unknown"))]
    lines += [b"%b: %b" % (_title(name), value) for name, value in headers]
    lines += [b"%b: %b" % (_title(name), value) for name, value in own]
    if not any(name == b"date" for name, _ in headers):
        lines.append(_date.header())
    return b"\r\n".join((*lines, b"", b""))


@lru_cache(maxsize=256)
def _title(name: bytes) -> bytes:
    """Return `Content-Type` for `content-type`: some clients compare names case-sensitively."""
    return name.title()


def request_head(
    method: bytes, target: bytes, host: bytes, headers: Sequence[Header], length: int
) -> bytes:
    """Return the bytes of a request's head.

    Args:
        method: the HTTP method, such as POST.
        target: path and query.
        host: the value of the `Host` header.
        headers: the other headers, without `Content-Length`.
        length: the length of the body in bytes.
    """
    lines = [b"%b %b HTTP/1.1" % (method, target), b"host: " + host]
    lines += [b"%b: %b" % header for header in headers]
    lines.append(b"content-length: %d" % length)
    return b"\r\n".join((*lines, b"", b""))


class _Date:
    """The `Date` header, formatted once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._header = b""

    def header(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._header = b"Date: " + formatdate(second, usegmt=True).encode()
        return self._header


_date: Final = _Date()
