"""The relay of a request to the next hop, and of its response back.

The frontend relays to a worker, and the worker to its engine, both with these functions. The bytes
of a response go from the callback that received them to the client's transport, without a task.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

from dynamometer.http.exchange import Request, Stream
from dynamometer.http.messages import Headers
from dynamometer.http.reply import Reply

# A worker sets this header on a response when its engine did not receive the request: the frontend
# may send the request to another worker. The header is removed from all other responses.
RETRY_HEADER: Final = b"x-dynamometer-retry"

# Headers of one connection, not of the message (RFC 9110, 7.6.1), and the length: each hop sets
# its own.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    }
)
# Both hops read the response for its metrics, so the engine must not compress it.
NOT_FORWARDED: Final = HOP_BY_HOP | {b"host", b"accept-encoding", b"expect"}
# Each hop sets its own headers for the web pages that may read its responses (`origins`).
_CORS: Final = b"access-control-"


def request_headers(
    headers: Headers, *, read: bool = False, without: AbstractSet[bytes] = frozenset()
) -> Headers:
    """Return the headers of a request for the next hop.

    Args:
        headers: the headers of the client's request.
        read: True if this hop has read the body and sends it without its `Content-Encoding`.
        without: names of headers, in lower case, that are removed.
    """
    dropped = NOT_FORWARDED | headers.tokens(b"connection") | without
    if read:
        dropped |= {b"content-encoding"}
    kept = Headers(header for header in headers if header[0] not in dropped)
    kept.append((b"accept-encoding", b"identity"))
    return kept


def response_headers(headers: Headers) -> Headers:
    """Return the headers of a response for the client."""
    dropped = HOP_BY_HOP | headers.tokens(b"connection") | {RETRY_HEADER}
    return Headers(
        header for header in headers if header[0] not in dropped and not header[0].startswith(_CORS)
    )


def target(request: Request) -> bytes:
    """Return path and query of `request` for the next hop; the query is unchanged."""
    path = request.path.encode()
    return path + b"?" + request.query if request.query else path


def begin(request: Request, reply: Reply, *, length: int | None) -> Stream:
    """Send the status and headers of `reply` to the client of `request`.

    Args:
        request: the client's request.
        reply: the response of the next hop.
        length: the length of the body in bytes; None if unknown.
    """
    headers = response_headers(reply.headers)
    stream = request.begin(reply.status, headers, length=length, reason=reply.reason)
    stream.flow = reply
    return stream


async def pass_on(reply: Reply, stream: Stream, take: Callable[[bytes], None]) -> None:
    """Call `take` with each piece of the body of `reply`, until the client disconnects.

    While the client reads too slowly, no bytes are read from the next hop.

    Args:
        reply: the response of the next hop.
        stream: the body of the response to the client.
        take: a function that counts the bytes, and writes to `stream`.

    Raises:
        BrokenError: The connection to the next hop broke before the end of the body.
    """

    def read(data: bytes) -> None:
        if not stream.closed:
            take(data)

    await reply.read_into(read)
