"""Whether an engine answers: its port, and its own word about its health."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from dynamometer.metrics.response_body import read_body
from dynamometer.names import label_value
from dynamometer.process.blocking import BlockingCalls, HangError

_CONNECT_SECONDS: Final = 1.0
# ValueError: what is no host name or URL, perhaps where a redirection leads.
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
_PLAIN: Final = {"Accept-Encoding": "identity"}
# This process or machine is short of something: nothing is known about the engine.
_OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_LONGEST_MODELS_BYTES: Final = 1 << 20
_LONGEST_NAME: Final = 1024


@dataclass(frozen=True)
class Health:
    """What was found out.

    Attributes:
        well: whether it answers.
        reason: why not.
        gone: nobody listens at all: it has ended, it is not merely slow.
    """

    well: bool
    reason: str = ""
    gone: bool = False


class HealthCheck:
    """Questions to one engine."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, path: str, *, deadline: float
    ) -> None:
        """Nothing is asked yet.

        Args:
            session: to ask with.
            url: the engine's, without a path.
            path: of its health route; empty where only its port is to be looked at.
            deadline: how long an answer may take, seconds.
        """
        self._session = session
        self._url = url
        self._path = path
        self._deadline = deadline
        self._resolving: BlockingCalls[Sequence[str]] = BlockingCalls(
            f"{url}: its address", deadline=_CONNECT_SECONDS
        )

    async def port(self) -> Health:
        """Whether somebody listens; costs the engine nothing.

        Raises:
            OSError: This process cannot connect to anything, for want of descriptors or memory.
        """
        try:
            parts = urlsplit(self._url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            host = parts.hostname or ""
            addresses = await self._resolving.run(partial(_addresses, host, port))
            async with asyncio.timeout(_CONNECT_SECONDS):
                writer = await _connect(addresses, port)
        except TimeoutError:
            return Health(False, f"{self._url}: no connection within {_CONNECT_SECONDS:g} s")
        except HangError as error:
            return Health(False, str(error))
        except (OSError, ValueError) as error:
            _raise_own(error)
            gone = isinstance(error, ConnectionRefusedError)
            why = "nobody listens there" if gone else str(error)
            return Health(False, f"{self._url}: {why}", gone)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return Health(True)

    async def answer(self) -> Health:
        """What its health route says; SGLang's lets a forward pass through the scheduler.

        Raises:
            OSError: See `port`.
        """
        if not self._path:
            return await self.port()
        url = self._url + self._path
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.get(url) as answer:
                    status = answer.status
        except TimeoutError:
            return Health(False, f"{url}: no answer within {self._deadline:g} s")
        except aiohttp.ClientConnectorError as error:
            _raise_own(error)
            return Health(False, f"{url}: {os.strerror(error.errno) if error.errno else error}")
        except _ERRORS as error:
            return Health(False, f"{url}: {error or type(error).__name__}")
        # What has no such route answers all the same.
        return Health(status < 500, "" if status < 500 else f"{url} answers {status}")

    async def model(self) -> str:
        """The first model that it serves; empty where it does not say."""
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.get(
                    self._url + "/v1/models", headers=_PLAIN, auto_decompress=False
                ) as answer:
                    listed = orjson.loads(await read_body(answer, _LONGEST_MODELS_BYTES))
            name = label_value(str(listed["data"][0]["id"]))
        except (*_ERRORS, LookupError, TypeError):
            return ""
        return name if len(name) <= _LONGEST_NAME else ""


def _addresses(host: str, port: int) -> Sequence[str]:
    """The addresses of a host; a name service may block."""
    with suppress(ValueError):
        return (str(ipaddress.ip_address(host)),)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


async def _connect(addresses: Sequence[str], port: int) -> asyncio.StreamWriter:
    """Connect to the first address that takes the connection; raise the last one's error."""
    for address in addresses[:-1]:
        with suppress(OSError):
            return (await asyncio.open_connection(address, port))[1]
    return (await asyncio.open_connection(addresses[-1], port))[1]


def _raise_own(error: Exception) -> None:
    """Raise `error` where it says nothing about the engine."""
    if isinstance(error, OSError) and error.errno in _OWN_FAULTS:
        raise error
    if isinstance(error, socket.gaierror):  # which has no word for it
        os.close(os.open(os.devnull, os.O_RDONLY))
