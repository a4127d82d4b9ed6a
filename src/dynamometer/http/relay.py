"""Bytes from one HTTP side to the other: headers, and a body as it comes.

Used by the frontend and the worker alike; the one module that a faster relay may replace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

# Set by a worker on an answer that came before its engine had seen the request: another worker
# may be asked. An engine's own, or one on its way to a client, is none.
RETRY_HEADER: Final = "X-Dynamometer-Retry"

# Of one connection, not of the message (RFC 9110, 7.6.1); lengths are set anew.
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
# Whether an answer's head has been sent: an error can then only break the answer off.
BEGUN: Final = web.RequestKey("begun", bool)
# Both hops count what is in the answer: no compression.
NOT_FORWARDED: Final = HOP_BY_HOP | {"host", "accept-encoding", "expect"}


def request_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """A request's headers as they go on to the next hop."""
    dropped = NOT_FORWARDED | _named_by_connection(headers)
    kept = CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)
    kept["Accept-Encoding"] = "identity"
    return kept


def response_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """An answer's headers as they go back to the client."""
    dropped = HOP_BY_HOP | _named_by_connection(headers) | {RETRY_HEADER.lower()}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)


def target(base: str, request: web.Request) -> URL:
    """Where `request` goes on the next hop: its route's path, and its query as it came."""
    query = request.rel_url.raw_query_string
    return URL(f"{base}{request.path}{'?' if query else ''}{query}", encoded=True)


def _named_by_connection(headers: Mapping[str, str]) -> set[str]:
    return {word.strip().lower() for word in headers.get("Connection", "").split(",") if word}


def client(
    *,
    keepalive_seconds: float | None,
    middlewares: Sequence[aiohttp.ClientMiddlewareType] = (),
) -> aiohttp.ClientSession:
    """A session for forwarding: no limit of connections, no time limit on a stream.

    Args:
        keepalive_seconds: how long an idle connection is kept; less than the server does, or
            requests meet connections that are being closed. None: each request has its own.
        middlewares: for each request.
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
    """The next hop took no connection: it has not seen the request."""


class BrokenError(Exception):
    """The next hop's connection broke while it held the request."""


@asynccontextmanager
async def exchange(
    session: aiohttp.ClientSession, url: URL, body: bytes, headers: CIMultiDict[str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """POST `body`, and the answer once its headers are there.

    Leaving the context before the answer's end closes the connection: the next hop aborts.

    Raises:
        NotReachedError: no connection was made.
        BrokenError: it broke before there was an answer.
    """
    try:
        answer = await session.post(url, data=body, headers=headers, allow_redirects=False)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise NotReachedError(str(error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise BrokenError(repr(error)) from error
    try:
        yield answer
    finally:
        answer.close()  # gives the connection back where the answer was read to its end


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body of `answer`, each piece as soon as it is there.

    Raises:
        BrokenError: the connection broke before the body's end.
    """
    while True:
        try:
            chunk = await answer.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenError(repr(error)) from error
        if not chunk:
            return
        yield chunk


async def begin(
    request: web.Request, answer: aiohttp.ClientResponse, *, length: int | None
) -> web.StreamResponse:
    """Send status and headers of `answer` to the client of `request`.

    Args:
        request: the client's.
        answer: the next hop's.
        length: the body's length in bytes where it is known; else it is sent in chunks.
    """
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=response_headers(answer.headers)
    )
    response.content_length = length
    request[BEGUN] = True
    await response.prepare(request)
    return response
