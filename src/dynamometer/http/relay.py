"""The relay of a request to the next hop, and of its response back, chunk by chunk.

The frontend relays to a worker, and the worker to its engine, both with these functions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from dynamometer.metrics.http_source import connection_fault

# A worker sets this header on a response when its engine did not receive the request: the frontend
# may send the request to another worker. The header is removed from all other responses.
RETRY_HEADER: Final = "X-Dynamometer-Retry"

# Headers of one connection, not of the message (RFC 9110, 7.6.1); aiohttp sets the length again.
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
    }
)
# Set when the head of a response was sent: an error can then only close the connection.
HEAD_SENT: Final = web.RequestKey("head_sent", bool)
# Both hops read the response for its metrics, so the engine must not compress it.
NOT_FORWARDED: Final = HOP_BY_HOP | {"host", "accept-encoding", "expect"}


def request_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the headers of a request for the next hop."""
    dropped = NOT_FORWARDED | _named_by_connection(headers)
    kept = CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)
    kept["Accept-Encoding"] = "identity"
    return kept


def response_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the headers of a response for the client."""
    dropped = HOP_BY_HOP | _named_by_connection(headers) | {RETRY_HEADER.lower()}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)


def target(base: str, request: web.Request) -> URL:
    """Return the URL of `request` at the next hop; the query stays as the client sent it."""
    query = request.rel_url.raw_query_string
    return URL(f"{base}{request.path}{'?' if query else ''}{query}", encoded=True)


def _named_by_connection(headers: Mapping[str, str]) -> set[str]:
    return {word.strip().lower() for word in headers.get("Connection", "").split(",") if word}


def client(
    *,
    keepalive_seconds: float | None,
    middlewares: Sequence[aiohttp.ClientMiddlewareType] = (),
) -> aiohttp.ClientSession:
    """Return a session for forwarding: no limit of connections, and no time limit on a stream.

    Args:
        keepalive_seconds: the time that an idle connection stays open. It must be shorter than
            the server's, or the server may close a connection that is just being used again. None:
            a new connection for each request.
        middlewares: aiohttp's client middlewares, called for each request.
    """
    connector = (
        aiohttp.TCPConnector(limit=0, force_close=True)
        if keepalive_seconds is None
        else aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_seconds)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=2**18,
        middlewares=middlewares,
    )


class NotReachedError(Exception):
    """The next hop accepted no connection, so it did not receive the request."""


class BrokenError(Exception):
    """The connection broke after the next hop may have received the request."""


@asynccontextmanager
async def exchange(
    session: aiohttp.ClientSession, url: URL, body: bytes, headers: CIMultiDict[str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """POST `body`, and yield the response when its headers have arrived.

    Leaving the context before the end of the response closes the connection, and the next hop
    aborts the request.

    Raises:
        NotReachedError: The next hop accepted no connection.
        BrokenError: The connection broke before the headers of the response arrived.
    """
    try:
        answer = await session.post(url, data=body, headers=headers, allow_redirects=False)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise NotReachedError(connection_fault(error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise BrokenError(connection_fault(error)) from error
    try:
        yield answer
    finally:
        answer.close()  # keeps the connection for reuse if the body was read to its end


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the chunks of the body of `answer` as they arrive.

    Raises:
        BrokenError: The connection broke before the end of the body.
    """
    while True:
        try:
            chunk = await answer.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenError(connection_fault(error)) from error
        if not chunk:
            return
        yield chunk


async def begin(
    request: web.Request, answer: aiohttp.ClientResponse, *, length: int | None
) -> web.StreamResponse:
    """Send the status and headers of `answer` to the client of `request`.

    Args:
        request: the client's request.
        answer: the response of the next hop.
        length: the length of the body in bytes; None sends the body in chunks.
    """
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=response_headers(answer.headers)
    )
    response.content_length = length
    request[HEAD_SENT] = True
    await response.prepare(request)
    return response
