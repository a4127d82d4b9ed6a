"""The HTTP server, by the bytes on its connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dynamometer.http import addresses
from dynamometer.http.exchange import Request, Stream
from dynamometer.http.messages import Headers, Refusal, Response
from dynamometer.http.request_parser import RequestParser
from dynamometer.http.server import Limits, serving

LIMITS = Limits(body_bytes=1000, idle_seconds=30, head_seconds=30, body_seconds=30)


class Echo:
    """An application that answers a request with its body, or by its path."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.cancelled: list[str] = []
        self.go_on = asyncio.Event()

    def refuse(self, refusal: Refusal) -> Response:
        return Response(refusal.status, str(refusal).encode())

    async def answer(self, request: Request) -> Response | None:
        try:
            body = await request.read()
        except Refusal as refusal:
            self.seen.append((request.method, request.path, str(refusal).encode()))
            return self.refuse(refusal)
        self.seen.append((request.method, request.path, body))
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled.append(request.path)
            raise

    async def _answer(self, request: Request, body: bytes) -> Response | None:
        if request.path == "/wait":
            await self.go_on.wait()
        if request.path == "/stream":
            stream = request.begin(200, Headers([(b"x-kind", b"stream")]))
            stream.write(b"one ")
            await self.go_on.wait()
            stream.write(b"two")
            stream.end()
            return None
        if request.path == "/unfinished":
            request.begin(200, Headers(), length=10).write(b"half")
            return None
        if request.path == "/nothing":
            return Response(204, b"")
        return Response(200, body, [(b"x-path", request.path.encode())])


class Silent:
    """A sending side that no test uses."""

    def begin(
        self, request: Request, status: int, headers: Headers, length: int | None, reason: bytes
    ) -> Stream:
        raise NotImplementedError

    def send_continue(self) -> None:
        raise NotImplementedError


class Peer:
    """A client that writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.read()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next response, whose length must be known."""
        head = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        fields = [line.split(": ", 1) for line in head[1:-2]]
        headers = {name.lower(): value for name, value in fields}
        async with asyncio.timeout(5):
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body


class Bench:
    def __init__(self, app: Echo, address: tuple[str, int]) -> None:
        self.app = app
        self.address = address
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> Peer:
        reader, writer = await asyncio.open_connection(*self.address)
        self._writers.append(writer)
        return Peer(reader, writer)

    async def send(self, data: bytes) -> bytes:
        """Send `data`, and return all bytes until the connection closes."""
        client = await self.connect()
        client.send(data)
        return await client.rest()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def make(limits: Limits = LIMITS) -> AsyncIterator[Bench]:
    app = Echo()
    listener = addresses.listen("127.0.0.1", 0, setting="")
    address = listener.getsockname()
    async with serving(app, listener, limits=limits):
        bench = Bench(app, address)
        try:
            yield bench
        finally:
            bench.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with make() as made:
        yield made


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def post(body: bytes, path: str = "/a", *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


CHUNKED = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_connection_is_kept_for_the_next_request(bench: Bench) -> None:
    client = await bench.connect()
    for body in (b"one", b"", b"three"):
        client.send(post(body))
        status, headers, got = await client.answer()
        assert (status, got, headers["x-path"]) == (200, body, "/a")
        assert "date" in headers
        assert "connection" not in headers


async def test_a_request_may_come_byte_by_byte(bench: Bench) -> None:
    client = await bench.connect()
    for byte in post(b"body") + CHUNKED + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nX-Trailer: 1\r\n\r\n":
        client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.answer())[2] == b"body"
    assert (await client.answer())[2] == b"abc"


async def test_requests_that_are_sent_ahead_are_answered_in_their_order(bench: Bench) -> None:
    client = await bench.connect()
    client.send(post(b"1", "/wait") + post(b"2") + post(b"3")[:-1])
    await until(lambda: bench.app.seen)
    client.send(b"3" + post(b"4"))
    await asyncio.sleep(0.02)
    assert [body for _, _, body in bench.app.seen] == [b"1"]
    bench.app.go_on.set()
    assert [(await client.answer())[2] for _ in range(4)] == [b"1", b"2", b"3", b"4"]


async def test_any_number_of_requests_may_be_sent_ahead(bench: Bench) -> None:
    count = 5000
    reader, writer = await asyncio.open_connection(*bench.address)
    writer.write(post(b"") * (count - 1) + post(b"", "/a", "Connection: close"))
    async with asyncio.timeout(20):
        answers = await reader.read()
    writer.close()
    assert answers.count(b" 200 OK") == count == len(bench.app.seen)


async def test_reading_pauses_for_bytes_sent_ahead_and_resumes_after_the_answer(
    bench: Bench,
) -> None:
    async with make(Limits(body_bytes=2**22)) as bench:
        client = await bench.connect()
        client.send(post(b"1", "/wait"))
        await until(lambda: bench.app.seen)
        large = b"x" * 2**22
        client.send(post(large))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.writer.drain()
        bench.app.go_on.set()
        assert (await client.answer())[2] == b"1"
        assert (await client.answer())[2] == large


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_stream_has_chunks_or_ends_with_its_connection(bench: Bench, version: str) -> None:
    """aio-libs/aiohttp#526: an HTTP/1.0 client with keep-alive reads until the end."""
    bench.app.go_on.set()
    client = await bench.connect()
    line = f"POST /stream HTTP/{version}\r\n".encode()
    client.send(line + b"Connection: keep-alive\r\nContent-Length: 0\r\n\r\n")
    if version == "1.0":
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert b"transfer-encoding" not in head.lower()
        assert body == b"one two"
    else:
        head = await client.until(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert await client.until(b"0\r\n\r\n") == b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"
        client.send(post(b"again"))
        assert (await client.answer())[2] == b"again"


async def test_an_http_1_0_connection_is_kept_only_on_request(bench: Bench) -> None:
    client = await bench.connect()
    kept = b"POST /a HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nb"
    client.send(kept)
    assert (await client.answer())[1]["connection"] == "keep-alive"
    client.send(kept.replace(b"keep-alive", b"close"))
    assert b"connection: close" in (await client.rest()).lower()
    plain = await bench.send(b"POST /a HTTP/1.0\r\nContent-Length: 1\r\n\r\nb")
    assert plain.endswith(b"\r\n\r\nb")


async def test_an_answer_without_a_body_has_no_length(bench: Bench) -> None:
    client = await bench.connect()
    client.send(post(b"", "/nothing") + b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n" + post(b"after"))
    status, headers, _ = await client.answer()
    assert (status, "content-length" in headers, "transfer-encoding" in headers) == (
        204, False, False
    )  # fmt: skip
    assert b"Content-Length: 0\r\n" in await client.until(b"\r\n\r\n")
    assert (await client.answer())[2] == b"after"


async def test_a_client_that_expects_100_continue_gets_it_before_its_body(bench: Bench) -> None:
    client = await bench.connect()
    request = post(b"body", "/a", "Expect: 100-continue")
    client.send(request[:-4])
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(request[-4:])
    assert (await client.answer())[2] == b"body"
    client.send(request)  # without waiting for 100 Continue
    assert (await client.answer())[2] == b"body"


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(bench: Bench) -> None:
    client = await bench.connect()
    client.send(post(b"x" * 1001, "/a", "Expect: 100-continue")[:-1001])
    assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in (await client.rest()).lower()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_sends_too_much_reads_its_refusal(bench: Bench, chunked: bool) -> None:
    part = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    request = CHUNKED + part * 2000 if chunked else post(b"x" * 2_000_000)
    reader, writer = await asyncio.open_connection(*bench.address)
    writer.write(request)
    async with asyncio.timeout(5):
        await writer.drain()
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert bench.app.seen[0][:2] == ("POST", "/a")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /a HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\nContent-Length: 0\r\n", 200),
        (b"POST /a HTTP/1.1\r\nA: " + b"x" * 32_700 + b"\r\nContent-Length: 0\r\n", 200),
        (b"POST /a HTTP/1.1\r\nA: " + b"x" * 32_768 + b"\r\nContent-Length: 0\r\n", 431),
        (b"POST /a HTTP/1.1\r\n" + (b"A: " + b"x" * 16_000 + b"\r\n") * 5, 431),
        (b"POST /a HTTP/1.1\r\n" + b"A: \r\n" * 14_000, 431),
        (b"POST /a HTTP/1.1\r\nA: " + b"x" * 200_000, 431),
        (b"POST /a?" + b"x" * 40_000 + b" HTTP/1.1\r\n", 414),
        (b"POST /a?" + b"x" * 400_000, 414),
    ],
)
async def test_a_head_has_limits(bench: Bench, head: bytes, status: int) -> None:
    answer = await bench.send(head + b"Connection: close\r\n\r\n")
    assert answer.split()[1] == b"%d" % status
    assert answer.count(b"HTTP/1.1") == 1
    handled = [path for _, path, _ in bench.app.seen]
    assert handled == (["/a"] if b"?" not in head else [])[:1] or status == 414


TE = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "


@pytest.mark.parametrize(
    "request_",
    [
        TE + b"chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /a HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\na",
        b"POST /a HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
        b"POST /a HTTP/1.1\r\nContent-Length : 1\r\n\r\na",
        b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        TE + b"gzip, chunked\r\n\r\n0\r\n\r\n",
        TE + b"chunked, chunked\r\n\r\n0\r\n\r\n",
        TE + b"chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        TE + b"identity\r\n\r\n",
        TE + b"xchunked\r\n\r\n0\r\n\r\n",
        *(CHUNKED + size + b"\r\na\r\n0\r\n\r\n"
          for size in (b"+1", b"0x1", b"1_0", b"-1", b" 1", b"", b"g", b"f" * 17)),
        CHUNKED + b"1\na\r\n0\r\n\r\n",
        CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\nContent-Length: 0\n\n",
        b"POST /a HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"POST /a HTTP/1.1\r\nA: b\0c\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /a HTTP/2.0\r\n\r\n",
        b"POST /a\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)  # fmt: skip
async def test_an_ambiguous_message_is_refused(bench: Bench, request_: bytes) -> None:
    client = await bench.connect()
    client.send(request_ + b"POST /smuggled HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert bench.app.seen == []


async def test_a_body_that_breaks_later_is_refused_where_it_is_read(bench: Bench) -> None:
    client = await bench.connect()
    client.send(CHUNKED + b"1\r\na\r\n")
    await asyncio.sleep(0.02)
    client.send(b"ZZ\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert len(bench.app.seen) == 1


async def test_garbage_after_a_request_does_not_change_its_answer(bench: Bench) -> None:
    answers = await bench.send(post(b"fine") + b"\0garbage\r\n\r\n")
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_the_offer_of_another_protocol_is_ignored(bench: Bench, protocol: str) -> None:
    client = await bench.connect()
    client.send(post(b"body", "/a", "Connection: Upgrade", f"Upgrade: {protocol}") + post(b"next"))
    assert [(await client.answer())[2] for _ in range(2)] == [b"body", b"next"]


async def test_a_target_may_be_a_whole_url_and_its_path_encoded(bench: Bench) -> None:
    client = await bench.connect()
    client.send(b"GET http://x:1/%61/b?c=%20d HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.answer())[1]["x-path"] == "/a/b"


@pytest.mark.parametrize("origin", ["x", "[::1", ":99999999", "a@b@c", "x:y:z", "[["])
@pytest.mark.parametrize(
    ("rest", "path"), [("/a/b?c", "/a/b"), ("", "/"), ("?c=/d", "/"), ("/a/" + "x" * 40_000, None)]
)
async def test_any_origin_of_a_whole_url_is_ignored(
    bench: Bench, caplog: pytest.LogCaptureFixture, origin: str, rest: str, path: str | None
) -> None:
    client = await bench.connect()
    client.send(f"GET http://{origin}{rest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    status, headers, _ = await client.answer()
    assert (status, headers.get("x-path")) == ((200, path) if path else (414, None))
    assert caplog.text == ""


TRAILER = b"1\r\na\r\n0\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"1;", b"x"),
        (TRAILER + b"A: ", b"x"),
        (TRAILER, b"A: b\r\n"),
        (TRAILER, b"x"),
        (b"", b"0"),
    ],
)
async def test_a_body_without_bytes_of_a_body_has_a_limit(
    bench: Bench, begin: bytes, more: bytes
) -> None:
    """Endless extensions and trailers use neither memory nor time for copies."""
    client = await bench.connect()
    client.send(CHUNKED + begin + more * 200_000)
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) in [(431, "close"), (400, "close")]


async def test_the_memory_of_a_body_of_tiny_chunks_is_that_of_its_bytes() -> None:
    size = 2**19
    parser = RequestParser(Silent(), size)
    parser.feed(CHUNKED)
    chunks = b"2\r\nab\r\n" * 1024
    tracemalloc.start()
    for _ in range(size // 2048):
        parser.feed(chunks)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 2 * size
    parser.feed(b"0\r\n\r\n")
    assert await parser.requests[0].read() == b"ab" * (size // 2)
    parser.close()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("path", ["/wait", "/stream"])
async def test_a_disconnected_client_cancels_its_handler(
    bench: Bench, path: str, half: bool
) -> None:
    """The server cannot distinguish a client that closes only its sending side."""
    client = await bench.connect()
    client.send(post(b"", path))
    await until(lambda: bench.app.seen)
    if half:
        client.writer.write_eof()
    else:
        client.writer.close()
    await until(lambda: bench.app.cancelled == [path])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_probe_that_closes_its_sending_side_is_answered(bench: Bench, method: str) -> None:
    client = await bench.connect()
    client.send(f"{method} /wait HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await until(lambda: bench.app.seen)
    client.writer.write_eof()
    await asyncio.sleep(0.02)
    bench.app.go_on.set()
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()


async def test_a_client_that_disconnects_in_its_body_cancels_its_handler(bench: Bench) -> None:
    client = await bench.connect()
    client.send(post(b"body")[:-1])
    await asyncio.sleep(0.02)
    client.writer.close()
    await asyncio.sleep(0.05)
    assert bench.app.seen == []


async def test_an_unfinished_response_closes_its_connection(bench: Bench) -> None:
    client = await bench.connect()
    client.send(post(b"", "/unfinished"))
    assert b"content-length: 10" in (await client.until(b"\r\n\r\n")).lower()
    with contextlib.suppress(ConnectionError):
        assert await client.rest() == b"half"


SHORT = Limits(
    body_bytes=1000, idle_seconds=0.2, head_seconds=0.1, body_seconds=0.1, linger_seconds=0.1
)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [(b"", b""), (b"POST /a HT", b"408"), (post(b"abc")[:-1], b"408"), (CHUNKED, b"408")],
)
async def test_a_missing_or_incomplete_request_has_a_deadline(
    request_: bytes, answer: bytes
) -> None:
    async with make(SHORT) as bench:
        assert (await bench.send(request_)).partition(b" ")[2][:3] == answer
        assert len(bench.app.seen) == (b"/a HTTP/1.1" in request_)


class Large(Echo):
    """An application that answers with more bytes than the kernel buffers."""

    size = 2**24

    async def answer(self, request: Request) -> Response | None:
        return Response(200, b"x" * self.size)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize(
    "more", [b"", b"GET / HT", b"\0garbage", post(b"abc")[:-1], post(b""), post(b"") + b"GET"]
)
async def test_a_client_that_never_reads_its_response_is_closed(
    connection: str, more: bytes
) -> None:
    listener = addresses.listen("127.0.0.1", 0, setting="")
    address = listener.getsockname()
    async with serving(Large(), listener, limits=SHORT):
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(address)
            before = len(os.listdir("/proc/self/fd"))
            raw.sendall(f"GET / HTTP/1.1\r\nConnection: {connection}\r\n\r\n".encode())
            await until(lambda: len(os.listdir("/proc/self/fd")) > before)
            raw.sendall(more)
            await until(lambda: len(os.listdir("/proc/self/fd")) == before)
            got = 0
            with contextlib.suppress(ConnectionResetError):  # its bytes are unread too
                while part := await asyncio.to_thread(raw.recv, 2**20):
                    got += len(part)
    assert 0 < got < Large.size


async def test_a_slow_body_is_read_and_a_handler_has_no_deadline() -> None:
    async with make(SHORT) as bench:
        client = await bench.connect()
        for byte in post(b"abcdef"):
            client.send(bytes([byte]))
            if byte in b"abcdef" and bench.app.seen == []:
                await asyncio.sleep(0.01)
        assert (await client.answer())[2] == b"abcdef"
        client.send(post(b"", "/wait"))
        await asyncio.sleep(0.4)
        bench.app.go_on.set()
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""  # after the idle time


async def test_a_client_that_does_not_read_pauses_the_source() -> None:
    """The source is paused and resumed, and every byte arrives."""
    calls: list[str] = []
    size = 2**16

    class Source:
        def pause(self) -> None:
            calls.append("pause")
            paused.clear()

        def resume(self) -> None:
            calls.append("resume")
            paused.set()

    paused = asyncio.Event()
    paused.set()

    class App(Echo):
        async def answer(self, request: Request) -> Response | None:
            stream = request.begin(200, Headers())
            stream.flow = Source()
            for number in range(256):
                await paused.wait()
                stream.write(bytes([number]) * size)
            stream.end()
            return None

    listener = addresses.listen("127.0.0.1", 0, setting="")
    address = listener.getsockname()
    async with serving(App(), listener, limits=LIMITS):
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(address)
            raw.sendall(b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            await until(lambda: "pause" in calls)
            got = await asyncio.to_thread(lambda: b"".join(iter(lambda: raw.recv(2**20), b"")))
    assert got.count(b"10000\r\n") == 256
    assert len(got) > 256 * size
    assert "resume" in calls


async def test_a_body_sent_ahead_of_an_unread_response_is_read_after_that_response() -> None:
    """Reading pauses and resumes together with writing."""
    body = b"y" * 2**21

    class App(Large):
        async def answer(self, request: Request) -> Response | None:
            self.seen.append((request.method, request.path, await request.read()))
            return Response(200, b"x" * self.size if request.path == "/large" else b"done")

    app = App()
    listener = addresses.listen("127.0.0.1", 0, setting="")
    limits = Limits(body_bytes=2**22, body_seconds=2)
    async with serving(app, listener, limits=limits), asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(post(b"", "/large"))
        await until(lambda: app.seen)
        await asyncio.sleep(0.05)
        writer.write(post(body, "/a", "Connection: close"))
        await asyncio.sleep(0.2)
        assert len(app.seen) == 1
        answers = await reader.read()
        writer.close()
    assert [seen[2] for seen in app.seen] == [b"", body]
    assert answers.endswith(b"done")


async def test_a_source_starts_paused_after_bytes_that_the_client_did_not_read() -> None:
    calls: asyncio.Queue[str] = asyncio.Queue()

    class Source:
        def pause(self) -> None:
            calls.put_nowait("pause")

        def resume(self) -> None:
            calls.put_nowait("resume")

    class App(Echo):
        async def answer(self, request: Request) -> Response | None:
            stream = request.begin(200, Headers([(b"a", b"x" * 2**24)]))
            stream.flow = Source()
            await self.go_on.wait()
            stream.end()
            return None

    app = App()
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener, limits=LIMITS), asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert await calls.get() == "pause"
        reading = asyncio.create_task(reader.read())
        assert await calls.get() == "resume"
        app.go_on.set()
        assert (await reading).endswith(b"0\r\n\r\n")
        writer.close()


async def test_the_end_of_a_server_cancels_its_handlers_and_closes_idle_connections() -> None:
    async with make() as bench:
        idle = await bench.connect()
        idle.send(post(b""))
        await idle.answer()
        busy = await bench.connect()
        busy.send(post(b"", "/wait"))
        await until(lambda: len(bench.app.seen) == 2)
        app = bench.app
    assert app.cancelled == ["/wait"]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_server_that_ends_sends_the_rest_of_its_responses(reads: bool) -> None:
    """A client that does not read delays the end by `linger_seconds`."""
    listener = addresses.listen("127.0.0.1", 0, setting="")
    address = listener.getsockname()
    received = threading.Event()

    async def serve() -> None:  # on a loop of its own, which ends with the server
        async with serving(Large(), listener, limits=LIMITS if reads else SHORT):
            await asyncio.to_thread(received.wait, 5)

    def receive() -> bytes:
        return b"".join(iter(lambda: raw.recv(2**20), b""))

    ended = asyncio.create_task(asyncio.to_thread(asyncio.run, serve()))
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(address)
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        raw.settimeout(5)
        head = await asyncio.to_thread(raw.recv, 1)
        received.set()
        if not reads:
            async with asyncio.timeout(5):
                await ended
        body = await asyncio.to_thread(receive)
        await ended
    assert (len(head + body) > Large.size) == reads


async def test_a_server_can_have_a_certificate(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    made = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", *curve, *names, *files, stderr=asyncio.subprocess.DEVNULL
    )
    assert await made.wait() == 0
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    app = Echo()
    app.go_on.set()
    listener = addresses.listen("127.0.0.1", 0, setting="")
    host, port = listener.getsockname()
    async with serving(app, listener, limits=LIMITS, tls=own):
        reader, writer = await asyncio.open_connection(host, port, ssl=trusting)
        client = Peer(reader, writer)
        client.send(post(b"body"))
        assert (await client.answer())[2] == b"body"
        client.send(post(b"", "/stream", "Connection: close"))
        assert (await client.rest()).endswith(b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")
        writer.close()
        reader, writer = await asyncio.open_connection(host, port, ssl=trusting)
        writer.write(post(b"x" * 1001))
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
