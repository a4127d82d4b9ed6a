"""The HTTP client of the next hop, against servers whose bytes a test defines."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamometer.http.client import Client, NotReachedError
from dynamometer.http.messages import Headers
from dynamometer.http.reply import BrokenError, Reply
from processes import refusing_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"200\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: 1\r\n\r\n"
INTERIM = b"100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 "
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    return head + await reader.readexactly(int(length[1]))


class Server:
    """A server that answers every request with `reply`, and counts connections and requests."""

    def __init__(self, reply: bytes = OK, *, close: bool = False) -> None:
        self.reply = reply
        self.close = close
        self.connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.requests.append(await read_request(reader))
                writer.write(self.reply)
                await writer.drain()
                if self.close:
                    break
        writer.close()


@asynccontextmanager
async def running(serve: Serve) -> AsyncIterator[str]:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client(idle_seconds=5)
    yield made
    made.close()
    await asyncio.sleep(0)


async def post(client: Client, url: str, body: bytes = b"body") -> Reply:
    async with asyncio.timeout(5):
        return await client.post(url, b"/a?b", Headers([(b"x-y", b"z")]), body)


async def read(reply: Reply) -> bytes:
    parts: list[bytes] = []
    async with asyncio.timeout(5):
        await reply.read_into(parts.append)
    return b"".join(parts)


async def ask(client: Client, url: str, body: bytes = b"body") -> bytes:
    return await read(await post(client, url, body))


async def test_a_request_is_sent_with_its_length_and_host(client: Client) -> None:
    server = Server()
    async with running(server.serve) as url:
        assert await ask(client, url) == b"ok"
    host = url.removeprefix("http://").encode()
    assert server.requests == [
        b"POST /a?b HTTP/1.1\r\nhost: " + host + b"\r\nx-y: z\r\ncontent-length: 4\r\n\r\nbody"
    ]


@pytest.mark.parametrize(
    ("reply", "length", "body"),
    [
        (b"200 OK\r\nContent-Length: 3\r\n\r\nabc", 3, b"abc"),
        (b"200 OK\r\nContent-Length: 0\r\n\r\n", 0, b""),
        (b"204 No Content\r\n\r\n", 0, b""),
        (b"200 OK\r\n\r\nabc", None, b"abc"),
        (b"200 OK\r\nConnection: close\r\n\r\nabc", None, b"abc"),
        (b"200 OK\r\nTransfer-Encoding: identity\r\n\r\nabc", None, b"abc"),
        (CHUNKED, None, b"abc"),
        (INTERIM + b"200 OK\r\nContent-Length: 3\r\n\r\nabc", 3, b"abc"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 1000])
async def test_a_body_ends_as_its_head_announces(
    client: Client, reply: bytes, length: int | None, body: bytes, size: int
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        content = b"HTTP/1.1 " + reply
        for begin in range(0, len(content), size):
            writer.write(content[begin : begin + size])
            await asyncio.sleep(0)
        writer.close()

    async with running(serve) as url:
        got = await post(client, url)
        assert (got.length, await read(got)) == (length, body)
        assert got.headers.get(b"a") == b""


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000,
    ],
)
async def test_a_reply_without_a_whole_head_is_broken(client: Client, reply: bytes) -> None:
    async with running(Server(reply, close=True).serve) as url:
        with pytest.raises(BrokenError):
            await post(client, url)


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 3\r\n\r\nab",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        *(b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n" + size + b"\r\na\r\n0\r\n\r\n"
          for size in (b"+1", b"0x1", b"1_0", b"-1", b" 1", b"g")),
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nabc\r\n",
    ],
)  # fmt: skip
async def test_a_body_that_does_not_end_as_announced_is_broken(client: Client, body: bytes) -> None:
    async with running(Server(b"HTTP/1.1 200 OK\r\n" + body, close=True).serve) as url:
        parts: list[bytes] = []
        with pytest.raises(BrokenError):  # in the head's read, or after it
            await (await post(client, url)).read_into(parts.append)


async def test_a_server_that_accepts_no_connection_is_not_reached(client: Client) -> None:
    for url in (f"http://127.0.0.1:{refusing_port()}", "http://nowhere.invalid:80"):
        with pytest.raises(NotReachedError):
            await post(client, url)


async def test_a_refused_connection_has_a_plain_reason(client: Client) -> None:
    with pytest.raises(NotReachedError, match=r"^Connection refused$"):
        await post(client, f"http://127.0.0.1:{refusing_port()}")


async def test_a_connection_that_breaks_before_the_answer_has_a_plain_reason(
    client: Client,
) -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with running(close) as url:
        with pytest.raises(BrokenError, match=r"^(Server disconnected|Connection reset)"):
            await post(client, url)


async def test_a_connection_is_kept_for_the_next_request(client: Client) -> None:
    server = Server()
    async with running(server.serve) as url:
        for _ in range(3):
            assert await ask(client, url) == b"ok"
        assert server.connections == 1
        both = await asyncio.gather(*(ask(client, url) for _ in range(2)))
        assert both == [b"ok", b"ok"]
        assert server.connections == 2


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 503 Unavailable\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"more",
    ],
)
async def test_a_connection_that_may_be_closed_is_not_kept(client: Client, reply: bytes) -> None:
    server = Server(reply)
    async with running(server.serve) as url:
        for _ in range(3):
            assert len(await ask(client, url)) == 2
        assert server.connections == 3


async def test_a_connection_whose_server_did_not_read_the_request_is_not_kept(
    client: Client,
) -> None:
    """A server may refuse a large body after its head, and never read the rest."""
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK.replace(b"200 OK", b"413 Too Large"))
        with contextlib.suppress(ConnectionError):
            await reader.read() if len(connections) == 2 else await held.wait()
        writer.close()

    held = asyncio.Event()
    async with running(serve) as url:
        assert await ask(client, url, b"x" * 2**26) == b"ok"
        assert await ask(client, url) == b"ok"
        assert len(connections) == 2
        held.set()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc",
        b"HTTP/1.1 101 Switching\r\n\r\n",
    ],
)
async def test_a_reply_that_switches_protocols_is_broken(
    client: Client, caplog: pytest.LogCaptureFixture, reply: bytes
) -> None:
    async with running(Server(reply).serve) as url:
        with pytest.raises(BrokenError, match=r"protocol|Upgrade"):
            await post(client, url)
    assert caplog.text == ""


async def test_an_idle_connection_is_closed_after_its_timeout() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await reader.read()
        ended.set()
        writer.close()

    async with running(serve) as url:
        client = Client(idle_seconds=0.05)
        assert await ask(client, url) == b"ok"
        async with asyncio.timeout(5):
            await ended.wait()
        client.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, as a kernel does if it is closed while bytes are unread."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Closing:
    """A server that closes each connection after one request, or with `read` after two."""

    def __init__(self, *, read: bool) -> None:
        self.read = read
        self.requests = 0
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        self.requests += 1
        writer.write(OK)
        if not self.read:
            writer.close()
            return
        with contextlib.suppress(asyncio.IncompleteReadError):
            await read_request(reader)
            self.requests += 1
        writer.close()


async def test_a_connection_that_was_closed_while_idle_fails_no_request(client: Client) -> None:
    server = Closing(read=False)
    async with running(server.serve) as url:
        for _ in range(5):
            assert await ask(client, url) == b"ok"
            await asyncio.sleep(0.005)
    assert server.requests == 5


async def test_a_request_that_a_kept_connection_may_have_read_is_not_repeated(
    client: Client,
) -> None:
    server = Closing(read=True)
    async with running(server.serve) as url:
        assert await ask(client, url) == b"ok"
        with pytest.raises(BrokenError):
            await ask(client, url)
    assert server.requests == 2


async def test_a_request_that_a_kept_connection_did_not_read_is_sent_again() -> None:
    """A reset shows that bytes of the request were not read."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = Client(idle_seconds=5)
    connections = []

    def serve() -> None:
        for number in range(2):
            connection, _ = listener.accept()
            connections.append(connection)
            connection.recv(65536)
            connection.sendall(OK)
            if number == 0:
                sent.wait(5)  # the second request stays unread
                connection.close()

    sent = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert await ask(client, url) == b"ok"
    second = asyncio.create_task(ask(client, url))
    await asyncio.sleep(0.05)
    sent.set()
    assert await second == b"ok"
    await asyncio.to_thread(thread.join)
    client.close()
    listener.close()
    for connection in connections:
        connection.close()


async def test_a_request_on_a_reset_first_connection_is_not_repeated(client: Client) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        reset(writer)

    async with running(serve) as url:
        with pytest.raises(BrokenError):
            await post(client, url)
    assert connections == 1


@pytest.mark.parametrize("phase", ["before the head", "within the body"])
async def test_a_cancelled_request_closes_its_connection(client: Client, phase: str) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if phase == "within the body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()
        writer.close()

    async with running(serve) as url:
        asking = asyncio.create_task(post(client, url))
        if phase == "within the body":
            (await asking).close()
        else:
            await asyncio.sleep(0.05)
            asking.cancel()
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_request_cancelled_after_its_reply_does_not_close_the_connection_of_the_next(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request takes the connection before the task of the first request runs."""
    server = Server()
    async with running(server.serve) as url:
        assert await ask(client, url) == b"ok"
        first = asyncio.create_task(client.post(url, b"/", Headers(), b"one"))
        taken: list[Any] = []
        kept = client.keep

        def keep(*arguments: Any) -> asyncio.TimerHandle:
            timer = kept(*arguments)
            taken.append(client._take_idle(url))  # as the next request does
            first.cancel()
            return timer

        monkeypatch.setattr(client, "keep", keep)
        with pytest.raises(asyncio.CancelledError):
            await first
        assert taken[0].usable


async def test_an_opened_connection_sends_nothing_and_can_be_released(client: Client) -> None:
    server = Server()
    async with running(server.serve) as url:
        for _ in range(3):
            opened = await client.open(url)
            opened.release()
        assert await ask(client, url) == b"ok"
        assert (server.connections, len(server.requests)) == (1, 1)
        # A kept connection that another request opened is not shared.
        both = [await client.open(url) for _ in range(2)]
        for connection in both:
            assert await read(await connection.send(b"/", Headers(), b"x")) == b"ok"
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_an_opened_connection_is_not_closed_as_an_idle_one() -> None:
    client = Client(idle_seconds=0.05)
    server = Server()
    async with running(server.serve) as url:
        for _ in range(2):  # a new connection, and a kept one
            opened = await client.open(url)
            await asyncio.sleep(0.1)
            assert await read(await opened.send(b"/", Headers(), b"x")) == b"ok"
        assert server.connections == 1
        (await client.open(url)).release()
        while client._open:
            await asyncio.sleep(0.01)
    client.close()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_connection_that_was_closed_before_its_request_is_replaced_if_it_was_kept(
    client: Client, kept: bool
) -> None:
    writers: list[asyncio.StreamWriter] = []
    server = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await server.serve(reader, writer)

    async with running(serve) as url:
        if kept:
            assert await ask(client, url) == b"ok"
        opened = await client.open(url)
        while not writers:
            await asyncio.sleep(0.01)
        writers[0].close()
        while client._open:  # until the client has read the end of the connection
            await asyncio.sleep(0.01)
        if kept:
            assert await read(await opened.send(b"/", Headers(), b"x")) == b"ok"
            assert server.connections == 2
        else:
            with pytest.raises(NotReachedError):
                await opened.send(b"/", Headers(), b"x")
            assert server.connections == 1


async def test_a_released_connection_that_its_server_has_reset_fails_no_request() -> None:
    """A server may close a connection without requests while the first request arrives."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = Client(idle_seconds=5)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    (await client.open(url)).release()
    first, _ = listener.accept()
    asking = asyncio.create_task(ask(client, url))
    while not select.select([first], [], [], 0)[0]:  # the request arrives, and stays unread
        await asyncio.sleep(0.01)
    first.close()
    second, _ = await asyncio.to_thread(listener.accept)
    await asyncio.to_thread(second.recv, 65536)
    second.sendall(OK)
    assert await asking == b"ok"
    second.close()
    listener.close()
    client.close()


async def test_a_failed_sink_ends_the_reading_with_its_error(client: Client) -> None:
    async with running(Server().serve) as url:
        reply = await post(client, url)

        def fail(_: bytes) -> None:
            raise RuntimeError("a fault of the sink")

        with pytest.raises(RuntimeError, match="of the sink"):
            await reply.read_into(fail)


async def test_a_paused_reply_stops_its_server_until_it_is_resumed(client: Client) -> None:
    size, written = 2**24, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 2**16):
            writer.write(b"x" * 2**16)
            await writer.drain()
            written += 2**16
        await reader.read()
        writer.close()

    async with running(serve) as url:
        reply = await post(client, url)
        reply.pause()
        got = 0

        def count(part: bytes) -> None:
            nonlocal got
            got += len(part)

        reading = asyncio.create_task(reply.read_into(count))
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.1)
        assert got < 2**19
        assert written < size
        reply.resume()
        async with asyncio.timeout(10):
            await reading
        assert got == size
