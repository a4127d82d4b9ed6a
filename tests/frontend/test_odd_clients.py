"""Clients that old tools, browsers and proxies are, at the frontend's port."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from bench import CHAT, Bench, fine, make_bench

from dynamometer.frontend import failures
from dynamometer.http import addresses
from dynamometer.http.exchange import Request
from dynamometer.http.handlers import Handlers
from dynamometer.http.messages import Response
from dynamometer.http.server import Limits, serving
from waiting import until

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
BODY = b'{"model":"m","stream":true}'
POST = b"POST /v1/chat/completions HTTP/1.%d\r\nHost: x\r\n%s"
ORIGIN = "https://chat.example"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with make_bench() as made:
        yield made


def request(*headers: bytes, version: int = 1, body: bytes = BODY) -> bytes:
    lines = b"".join(header + b"\r\n" for header in (*headers, b"Content-Length: %d" % len(body)))
    return POST % (version, lines) + b"\r\n" + body


async def streams(request: web.Request) -> web.StreamResponse:
    await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in (EVENT, EVENT, DONE):
        await response.write(part)
        await asyncio.sleep(0.005)
    return response


@pytest.mark.parametrize("connection", [b"keep-alive", b"Keep-Alive", b"close"])
async def test_a_stream_for_an_http_1_0_client_ends_with_its_connection(
    bench: Bench, connection: bytes
) -> None:
    """aio-libs/aiohttp#526: `ab -k` and old proxies ask to be kept, and read no chunks."""
    await bench.worker(streams)
    answer = await bench.sends(request(b"Connection: " + connection, version=0))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == EVENT + EVENT + DONE
    assert b"connection: close" in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert b"content-length" not in head.lower()
    assert bench.count("requests_total", status="success") == 1


async def test_an_answer_of_known_length_keeps_an_http_1_0_client(bench: Bench) -> None:
    await bench.worker(fine)
    kept = request(b"Connection: keep-alive", version=0, body=b'{"model":"m"}')
    answer = await bench.sends(kept + kept.replace(b"keep-alive", b"close"))
    assert answer.count(b"200 OK") == 2
    assert answer.endswith(b'{"model":"m"}')


@pytest.mark.parametrize("size", [9 * 2**10, 32_000])
async def test_a_long_header_goes_through(bench: Bench, size: int) -> None:
    """vllm-project/vllm#23267: tokens of several kilobytes."""
    seen = []

    async def note(request: Request) -> Response:
        await request.read()
        seen.append(request.headers.get(b"authorization"))
        return Response.of_json({})

    worker = Handlers()  # aiohttp's server takes lines of 8 KiB
    worker.post(CHAT, note)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    bench.register(addresses.url(listener))
    token = b"x" * size
    async with serving(worker, listener, limits=Limits(body_bytes=2**20)):
        answer = await bench.sends(request(b"Authorization: " + token, b"Connection: close"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert seen == [token]


@pytest.mark.parametrize(
    "headers", [[b"A: " + b"x" * 2**15], [b"A: " + b"x" * 2**14] * 4], ids=["line", "head"]
)
async def test_a_head_that_is_too_long_is_an_error_in_form_and_counted(
    bench: Bench, headers: list[bytes]
) -> None:
    await bench.worker(fine)
    answer = await bench.sends(request(*headers))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code": "headers_too_large"' in answer
    await until(lambda: bench.count("requests_total"))
    assert bench.count("requests_total", error_type="validation") == 1
    assert bench.count("failures_total", reason=failures.REFUSED.reason) == 1
    assert bench.count("inflight_requests") == bench.count("stage_requests") == 0


async def test_a_body_that_does_not_come_is_an_error_in_form_and_counted() -> None:
    async with make_bench(limits=Limits(body_bytes=2**20, body_seconds=0.1)) as bench:
        await bench.worker(fine)
        answer = await bench.sends(request()[:-1])
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "request_timeout"' in answer
        await until(lambda: bench.count("requests_total"))
        assert bench.count("requests_total", error_type="validation") == 1


def preflight(origin: str, path: str = CHAT) -> bytes:
    return (
        f"OPTIONS {path} HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\nConnection: close\r\n"
        "Access-Control-Request-Method: POST\r\n"
        "Access-Control-Request-Headers: authorization, content-type\r\n\r\n"
    ).encode()


async def test_no_web_page_may_read_answers_by_default(bench: Bench) -> None:
    async def opens(_: web.Request) -> web.StreamResponse:
        return web.Response(text="{}", headers={"Access-Control-Allow-Origin": "*"})

    await bench.worker(opens)
    assert (await bench.sends(preflight(ORIGIN))).startswith(b"HTTP/1.1 405 ")
    answer = await bench.sends(request(b"Origin: " + ORIGIN.encode(), b"Connection: close"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize(
    ("allowed", "origin", "answer"),
    [
        ([ORIGIN], ORIGIN, ORIGIN),
        (["http://other:1", ORIGIN], ORIGIN, ORIGIN),
        (["*"], ORIGIN, "*"),
        ([ORIGIN], "https://evil.example", None),
        ([ORIGIN], ORIGIN + ".evil.example", None),
        ([ORIGIN], "null", None),
    ],
)
async def test_pages_of_the_allowed_origins_may_read_answers(
    allowed: list[str], origin: str, answer: str | None
) -> None:
    async with make_bench(origins=allowed) as bench:
        await bench.worker(streams)
        headers = {"Origin": origin}
        for body in ({"model": "m", "stream": True}, {"model": "unknown"}):
            async with bench.session.post(bench.url + CHAT, json=body, headers=headers) as got:
                assert got.headers.get("Access-Control-Allow-Origin") == answer
                assert ("Vary" in got.headers) == (allowed != ["*"])
        async with bench.session.get(bench.url + "/metrics", headers=headers) as got:
            assert got.headers.get("Access-Control-Allow-Origin") == answer
        head = (await bench.sends(preflight(origin))).decode().lower()
        assert head.startswith("http/1.1 204 ")
        assert ("access-control-allow-origin" in head) == (answer is not None)
        assert "access-control-allow-methods: post\r\n" in head
        assert "access-control-allow-headers: authorization, content-type\r\n" in head
        assert bench.count("requests_started_total") == 2


async def test_options_that_are_no_preflight_are_refused_as_before() -> None:
    async with make_bench(origins=["*"]) as bench:
        request = f"OPTIONS {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await bench.sends(request.encode())).startswith(b"HTTP/1.1 405 ")


async def test_a_client_that_stops_reading_stops_the_worker_and_loses_nothing(
    bench: Bench,
) -> None:
    events = [b'data: {"choices":[{"delta":{"content":"%08d"}}]}\n\n' % n for n in range(400_000)]
    whole = b"".join(events) + DONE
    written = 0

    async def all_at_once(request: web.Request) -> web.StreamResponse:
        nonlocal written
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for begin in range(0, len(whole), 65_521):
            await response.write(whole[begin : begin + 65_521])
            written = begin
        return response

    await bench.worker(all_at_once)
    host, port = bench.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(request(version=0))
        before = -1
        while written != before or not written:
            before = written
            await asyncio.sleep(0.2)
        assert written < len(whole) - 2**20
        answer = await asyncio.to_thread(lambda: b"".join(iter(lambda: client.recv(2**20), b"")))
    assert answer.partition(b"\r\n\r\n")[2] == whole
    await until(lambda: bench.count("requests_total"))
    assert bench.count("requests_total", status="success") == 1
    assert bench.count("output_tokens_total") == len(events)
    assert bench.count("inter_token_latency_seconds_count") == len(events) - 1


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_an_answer_that_is_compressed_unasked_is_passed_on_and_a_success(
    bench: Bench, kind: str
) -> None:
    """The tokens of such an answer cannot be counted: the answer itself is not at fault."""
    content = gzip.compress((EVENT + DONE) * 100, 0)

    async def compressed(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        return web.Response(body=content, headers=headers)

    await bench.worker(compressed)
    answer = await bench.sends(request(b"Connection: close"))
    assert answer.partition(b"\r\n\r\n")[2] == content
    await until(lambda: bench.count("requests_total"))
    assert bench.count("requests_total", status="success") == 1
    assert bench.count("output_tokens_total") == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chunk", [b"zz\r\n", b"+1\r\na\r\n", b"1\r\nab\r\n", b"0\r\nX"])
async def test_a_malformed_chunk_of_a_worker_ends_the_request(
    bench: Bench, chunk: bytes, stream: bool
) -> None:
    kind = b"text/event-stream" if stream else b"application/json"
    first = EVENT if stream else b'{"a":'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(head + b"%x\r\n%b\r\n" % (len(first), first) + chunk)
        if chunk.startswith(b"0"):
            writer.close()  # within the trailers
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        bench.register(f"http://{host}:{port}")
        body = BODY if stream else b'{"model":"m"}'
        got = await bench.sends(request(b"Connection: close", body=body))
        await until(lambda: bench.count("requests_total"))
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.endswith(b"0\r\n\r\n") == stream
    assert (b"engine_error" in got) == stream
    assert bench.count("failures_total", reason=failures.BROKEN_OFF.reason) == 1
    assert bench.count("output_tokens_total") == stream
