"""The page of another process, requested over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from http import HTTPStatus
from typing import Final, NamedTuple

import aiohttp

from dynamometer.errors import DynamometerError
from dynamometer.metrics.response_body import TooLargeError, read_body

# Compression would cost the other process more than sending the plain page.
_HEADERS: Final = {"Accept-Encoding": "identity", "Accept": "text/plain;version=0.0.4,*/*;q=0.1"}


class RemotePageError(DynamometerError):
    """A page that cannot be read now.

    Attributes:
        reason: `timeout`, `unreachable`, `status`, `too_large` or `invalid`, as in error counts;
            `no_page` for a process without a page.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RemotePage(NamedTuple):
    """The content of a page, decoded, and its Content-Type."""

    body: bytes
    content_type: str


async def fetch_page(
    session: aiohttp.ClientSession,
    url: str,
    *,
    limit: int,
    deadline: float,
    redirects: bool = False,
) -> RemotePage:
    """Return a page in the text format.

    Args:
        session: the session that sends the request, with `auto_decompress=False`.
        url: the URL of the page.
        limit: the largest size of the page in bytes.
        deadline: the longest duration in seconds.
        redirects: follow redirects; else a redirect is an error.

    Raises:
        RemotePageError: The page cannot be read; the message does not name the URL.
    """
    try:
        async with asyncio.timeout(deadline):
            async with session.get(
                url, headers=_HEADERS, allow_redirects=redirects, auto_decompress=False
            ) as response:
                body = await read_body(response, limit)
    except TooLargeError as error:
        raise RemotePageError("too_large", str(error)) from None
    except TimeoutError:
        raise RemotePageError("timeout", f"no answer within {deadline:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise RemotePageError("unreachable", connection_fault(error)) from None
    except ValueError as error:
        raise RemotePageError("invalid", str(error)) from None
    if response.status != HTTPStatus.OK:
        raise RemotePageError("status", f"answers {_status(response.status)}")
    return RemotePage(body, response.headers.get("Content-Type", ""))


def connection_fault(error: Exception) -> str:
    """Return why a request failed, without the internal values in aiohttp's own messages."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    reason = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(reason, socket.gaierror):
        return reason.strerror or str(reason)
    if isinstance(reason, OSError) and reason.errno and not isinstance(reason, ssl.SSLError):
        return os.strerror(reason.errno)
    return str(reason) or type(reason).__name__


def _status(code: int) -> str:
    """Return a status with its phrase: 401 Unauthorized."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)
