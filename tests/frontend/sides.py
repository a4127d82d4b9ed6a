"""A frontend over prefill and decode workers whose answers a test sends, one at a time."""

from __future__ import annotations

import asyncio
import json
import re
import select
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from bench import Bench, make_bench

from dynamometer.http.relay import RETRY_HEADER
from dynamometer.runtime.record import DECODE, PREFILL, Record
from waiting import until

SECONDS = 10


class Exchange:
    """A request that arrived at a worker.

    Attributes:
        path: path and query.
        headers: the headers, with names in lower case.
        content: the body.
    """

    def __init__(
        self,
        head: bytes,
        content: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        lines = head.decode().split("\r\n")
        self.path = lines[0].split(" ")[1]
        self.headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        self.content = content
        self._reader = reader
        self._writer = writer
        self.over = asyncio.Event()

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found

    def begin(self, kind: str = "text/event-stream", status: int = 200) -> None:
        """Send the head of a stream."""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._writer.write(head.encode())

    def write(self, data: bytes) -> None:
        """Send a piece of a stream."""
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Send the end of a stream."""
        self._writer.write(b"0\r\n\r\n")
        self.over.set()

    def answer(
        self, body: bytes = b"{}", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send an answer that is not a stream."""
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines.append(f"Content-Length: {len(body)}\r\n\r\n")
        self._writer.write("\r\n".join(lines).encode() + body)
        self.over.set()

    def refuse(self) -> None:
        """Answer that the engine did not receive the request."""
        self.answer(b"{}", 503, {RETRY_HEADER.decode(): "1"})

    def break_off(self) -> None:
        """Reset the connection."""
        self._writer.transport.abort()
        self.over.set()

    async def closed(self) -> None:
        """Wait until the frontend closes the connection."""
        async with asyncio.timeout(SECONDS):
            with suppress(ConnectionError):
                assert await self._reader.read() == b""
        self.over.set()


async def _reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a server: a Transport
    await writer.drain()
    raw = writer.get_extra_info("socket")
    await until(lambda: select.select([raw.fileno()], [], [], 0)[0], within=SECONDS)
    writer.transport.abort()


class Side:
    """A worker of one mode, which shows each request to the test.

    Attributes:
        record: its record in discovery.
        connections: the number of connections that it has accepted.
        requests: the number of requests that it has received.
    """

    record: Record

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self._reset = False
        self._arrived: asyncio.Queue[Exchange] = asyncio.Queue()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def waiting(self) -> bool:
        """True if a request has arrived that the test has not taken yet."""
        return not self._arrived.empty()

    def reset_after_next(self) -> None:
        """Reset each open connection when the next request has arrived there, without reading."""
        self._reset = True

    async def next(self) -> Exchange:
        """Wait for the next request."""
        async with asyncio.timeout(SECONDS):
            return await self._arrived.get()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                assert length
                content = await reader.readexactly(int(length[1]))
                self.requests += 1
                exchange = Exchange(head, content, reader, writer)
                self._arrived.put_nowait(exchange)
                await exchange.over.wait()
                if self._reset:
                    self._reset = False
                    await _reset(writer)
                    return
        writer.close()

    async def close_connections(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()


class Pairing:
    """A bench with a prefill and a decode worker; a test may add further ones.

    Attributes:
        prefill: the first prefill worker.
        decode: the first decode worker.
    """

    def __init__(self, bench: Bench, stack: AsyncExitStack) -> None:
        self.bench = bench
        self._stack = stack
        self.prefill = self.decode = Side()

    async def side(self, mode: str, **fields: Any) -> Side:
        """Start a worker."""
        side = Side()
        server = await asyncio.start_server(side.serve, "127.0.0.1", 0, limit=2**26)
        self._stack.callback(server.close)
        self._stack.push_async_callback(side.close_connections)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        fields = {"bootstrap": "[::1]:8998"} | fields if mode == PREFILL else fields
        side.record = self.bench.register(url, mode=mode, **fields)
        return side

    async def start(self) -> None:
        self.prefill = await self.side(PREFILL)
        self.decode = await self.side(DECODE)

    async def both(self) -> tuple[Exchange, Exchange]:
        """Wait for a request at both first workers."""
        return await self.prefill.next(), await self.decode.next()


@asynccontextmanager
async def make_pairing(**options: Any) -> AsyncIterator[Pairing]:
    async with make_bench(**options) as bench, AsyncExitStack() as stack:
        pairing = Pairing(bench, stack)
        await pairing.start()
        yield pairing
