"""Checks of an engine's port and health route."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from dynamometer.metrics.remote_page import connection_fault
from dynamometer.metrics.response_body import read_body
from dynamometer.names import label_value
from dynamometer.process.blocking import BlockingCalls, HangError

_CONNECT_SECONDS: Final = 1.0
# aiohttp raises ValueError for an invalid host name or URL, such as the target of a redirect.
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
_PLAIN: Final = {"Accept-Encoding": "identity"}
# Errors of this process or machine, which is short of descriptors or memory; the engine may be
# healthy.
_OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_LARGEST_MODELS_BYTES: Final = 1 << 20
_LONGEST_NAME: Final = 1024


@dataclass(frozen=True)
class Health:
    """The result of one check.

    Attributes:
        healthy: the engine answered.
        reason: the fault; empty for a healthy engine.
        refused: no process listens on the port.
        disconnected: the connection failed, or broke before the answer.
    """

    healthy: bool
    reason: str = ""
    refused: bool = False
    disconnected: bool = False


class HealthCheck:
    """Requests to one engine that check its port and health, and that read its model's name."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, path: str, *, deadline: float
    ) -> None:
        """Prepare checks.

        Args:
            session: the HTTP client.
            url: the engine's address, without a path.
            path: the engine's health route; empty to check only the port.
            deadline: seconds in which the route must answer.
        """
        self._session = session
        self._url = url
        self._path = path
        self._deadline = deadline
        self._resolving: BlockingCalls[Sequence[str]] = BlockingCalls(
            f"{url}: the lookup of the host's address", deadline=_CONNECT_SECONDS
        )

    async def check_port(self) -> Health:
        """Check that a process listens on the port, without a request to the engine.

        Raises:
            OSError: This process is short of descriptors or memory.
        """
        try:
            parts = urlsplit(self._url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            host = parts.hostname or ""
            addresses = await self._resolving.run(_addresses, host, port)
            async with asyncio.timeout(_CONNECT_SECONDS):
                writer = await _connect(addresses, port)
        except TimeoutError:
            return Health(False, f"{self._url}: no connection within {_CONNECT_SECONDS:g} s")
        except HangError as error:
            return Health(False, str(error))
        except (OSError, ValueError) as error:
            return self._no_connection(error)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return Health(True)

    async def check_health(self) -> Health:
        """Request the health route.

        Raises:
            OSError: This process is short of descriptors or memory.
        """
        if not self._path:
            return await self.check_port()
        url = self._url + self._path
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.get(url) as response:
                    status = response.status
        except TimeoutError:
            return Health(False, f"{url}: no answer within {self._deadline:g} s")
        except aiohttp.ClientConnectorError as error:
            return self._no_connection(error)
        except _ERRORS as error:
            broken = isinstance(error, aiohttp.ClientConnectionError | OSError)
            return Health(False, f"{url}: {connection_fault(error)}", disconnected=broken)
        # An engine without this route answers 404: the engine is healthy.
        return Health(status < 500, "" if status < 500 else f"{url} answers {status}")

    async def fetch_model(self) -> str:
        """Return the first model that the engine lists; empty if the list cannot be read."""
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.get(
                    self._url + "/v1/models", headers=_PLAIN, auto_decompress=False
                ) as response:
                    listed = orjson.loads(await read_body(response, _LARGEST_MODELS_BYTES))
            name = label_value(str(listed["data"][0]["id"]))
        except (*_ERRORS, LookupError, TypeError):
            return ""
        return name if len(name) <= _LONGEST_NAME else ""

    def _no_connection(self, error: OSError | ValueError) -> Health:
        """Return the result of a failed connection, the same for a port and a health check."""
        _raise_own_fault(error)
        refused = isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
        fault = "no process listens there" if refused else connection_fault(error)
        return Health(False, f"{self._url}: {fault}", refused, disconnected=True)


def _addresses(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host; a name service may block."""
    with suppress(ValueError):
        return (str(ipaddress.ip_address(host)),)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


async def _connect(addresses: Sequence[str], port: int) -> asyncio.StreamWriter:
    """Connect to the first address that accepts; if none does, raise the last address's error."""
    for address in addresses[:-1]:
        with suppress(OSError):
            return (await asyncio.open_connection(address, port))[1]
    return (await asyncio.open_connection(addresses[-1], port))[1]


def _raise_own_fault(error: OSError | ValueError) -> None:
    """Raise `error` if its cause is a shortage on this machine, not a fault of the engine."""
    if isinstance(error, OSError) and error.errno in _OWN_FAULTS:
        raise error
    # A lookup that fails without free descriptors does not report that: opening a file does.
    if isinstance(error, socket.gaierror):
        os.close(os.open(os.devnull, os.O_RDONLY))
