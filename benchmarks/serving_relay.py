"""A bare relay of bytes for `make bench-serving`: the least that a hop in Python costs.

    serving_relay.py LISTEN TO [TO ...]

Each connection to port LISTEN gets one to a port TO, in turn; 0 is any free port. The relay reads
no HTTP. Several relays may listen on one port.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
from collections.abc import Iterator
from typing import cast

import uvloop

_BACKLOG = 4096


class _Upstream(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.connected(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        if self._client.transport is not None:
            self._client.transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self._client.transport is not None:
            self._client.transport.close()


class _Client(asyncio.Protocol):
    """A client's connection; `transport` is None after its end."""

    def __init__(self, ports: Iterator[int]) -> None:
        self.transport: asyncio.Transport | None = None
        self._port = next(ports)
        self._upstream: asyncio.Transport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Upstream(self), "127.0.0.1", self._port)
        except OSError:
            if self.transport is not None:
                self.transport.close()

    def connected(self, upstream: asyncio.Transport) -> None:
        if self.transport is None:
            upstream.close()
            return
        self._upstream = upstream
        upstream.writelines(self._waiting)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self._upstream is None:
            self._waiting.append(data)
        else:
            self._upstream.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.transport = None
        if self._upstream is not None:
            self._upstream.close()


async def serve(port: int, targets: list[int]) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(_BACKLOG)
    ports = itertools.cycle(targets)
    server = await asyncio.get_running_loop().create_server(lambda: _Client(ports), sock=listener)
    print(f"port {listener.getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
