"""A worker that dies, and a client that makes an error, at each phase: one request is counted."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from bench import CHAT, Bench, fine, make_bench, nobody

from dynamometer.frontend import failures
from dynamometer.frontend.failures import Failure
from waiting import until

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'
GAUGES = ("queued_requests", "active_requests", "inflight_requests", "stage_requests")
PLANE = "dynamo_request_plane_inflight_requests"
ROUNDTRIPS = "dynamo_request_plane_roundtrip_ttft_seconds_count"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with make_bench(max_body_size=2**16) as made:
        yield made


class Dying:
    """A worker that dies at one phase of each request."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.asked = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        stream = json.loads(await request.read()).get("stream")
        kind = "text/event-stream" if stream else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind})
        if not stream:
            response.content_length = 1000
        if self.phase != "before its answer":
            await response.prepare(request)
        if self.phase == "within its answer":
            await response.write(EVENT)
            await asyncio.sleep(0.03)
        assert request.transport is not None
        request.transport.abort()
        return response


class Well:
    """A worker that answers, and knows how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if not json.loads(await request.read()).get("stream"):
            return web.json_response({"usage": {"prompt_tokens": 5, "completion_tokens": 9}})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (EVENT, USAGE, b"data: [DONE]\n\n"):
            await response.write(part)
        return response


async def over(bench: Bench) -> None:
    """Wait until no gauge counts a request; check the counters."""
    await until(lambda: not any(bench.count(name) for name in (*GAUGES, PLANE)))
    assert bench.count("requests_total") == bench.count("requests_started_total")
    assert bench.count("request_duration_seconds_count") == bench.count("requests_total")
    assert bench.forwarder.active == 0


PHASES = [
    ("before a connection", failures.NOT_REACHED),
    ("before its answer", failures.WORKER_LOST),
    ("after its answer's head", failures.BROKEN_OFF),
    ("within its answer", failures.BROKEN_OFF),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("phase", "failure"), PHASES, ids=[phase for phase, _ in PHASES])
@pytest.mark.parametrize("other", [False, True])
async def test_a_worker_that_dies(
    bench: Bench, phase: str, failure: Failure, stream: bool, other: bool
) -> None:
    """Another one is asked only without a connection; both attempts are one request."""
    first, second = Dying(phase), Well()
    if phase == "before a connection":
        bench.register(nobody())
    else:
        await bench.worker(first.answer)
    if other:
        await bench.worker(second.answer)
    begun = failure is failures.BROKEN_OFF
    taken = failure is not failures.NOT_REACHED
    statuses = set()
    for _ in range(1 + other):  # in turn: one of two goes to the first worker first
        try:
            statuses.add((await bench.ask(stream=stream))[0])
        except aiohttp.ClientError:
            assert begun
            assert not stream
    failed = taken or not other
    await over(bench)
    assert bench.count("requests_total") == 1 + other
    assert bench.count("failures_total") == failed
    assert bench.count("failures_total", **{"class": failure.kind}, reason=failure.reason) == failed
    assert bench.count("requests_total", status="success") == 1 + other - failed
    assert bench.count("disconnected_clients") == bench.count("model_cancellation_total") == 0
    assert second.asked == (2 - taken if other else 0)
    answered = second.asked + (phase == "within its answer")
    assert bench.count(ROUNDTRIPS) == answered
    assert bench.count("time_to_first_token_seconds_count") == answered * stream
    expected = {200} if other or (begun and stream) else set()
    if failed and not begun:
        expected.add(502 if taken else 503)
    assert statuses == expected
    tokens = 9 * second.asked + (phase == "within its answer" and stream)
    assert bench.count("output_tokens_total") == tokens


async def ends(bench: Bench, sent: bytes) -> bytes:
    """Return the status line of the answer to a client that sends these bytes."""
    reader, writer = await asyncio.open_connection(*bench.url.removeprefix("http://").split(":"))
    writer.write(sent)
    await writer.drain()
    async with asyncio.timeout(5):
        answer = await reader.readline()
    writer.close()
    return answer


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("method", [b"HEAD", b"GET", b"OPTIONS", b"PUT"])
async def test_another_method_is_refused_before_it_is_a_request(
    bench: Bench, method: bytes
) -> None:
    await bench.worker(fine)
    assert b" 405 " in await ends(bench, HEAD.replace(b"POST", method) + b"\r\n")
    await over(bench)
    assert bench.count("requests_started_total") == 0


async def test_a_body_that_breaks_the_protocol_at_once_is_no_request(bench: Bench) -> None:
    await bench.worker(fine)
    assert b" 400 " in await ends(bench, HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n")
    await over(bench)
    assert bench.count("requests_started_total") == 0


async def test_one_whose_body_breaks_the_protocol_later_is_over_when_its_client_leaves(
    bench: Bench,
) -> None:
    await bench.worker(fine)
    reader, writer = await asyncio.open_connection(*bench.url.removeprefix("http://").split(":"))
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"  # the body is being read
    writer.write(b'5\r\n{"mod\r\nZZ\r\n')
    await writer.drain()
    writer.close()
    await over(bench)
    assert bench.count("requests_total") == 1
    assert bench.count("failures_total", reason=failures.INTERNAL.reason) == 0


async def test_a_compressed_request_for_a_stream_is_counted_as_any_other(bench: Bench) -> None:
    worker = Well()
    await bench.worker(worker.answer)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    body = gzip.compress(b'{"model":"m","stream":true}')
    async with bench.session.post(bench.url + CHAT, data=body, headers=headers) as answer:
        assert answer.status == 200
        assert await answer.read() == EVENT + b"data: [DONE]\n\n"
    await over(bench)
    assert bench.count("requests_total", request_type="stream", status="success") == 1
    assert bench.count("output_tokens_total") == 9
    assert bench.count("time_to_first_token_seconds_count") == 1


async def test_a_compressed_body_over_the_limit_is_counted_as_too_large(bench: Bench) -> None:
    await bench.worker(fine)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    body = gzip.compress(b" " * (2**16 + 1))
    async with bench.session.post(bench.url + CHAT, data=body, headers=headers) as answer:
        assert answer.status == 413
    await over(bench)
    assert bench.count("failures_total", reason=failures.TOO_LARGE.reason) == 1
    assert bench.count("failures_total") == bench.count("requests_total") == 1


async def test_an_answer_without_a_body_is_over_too(bench: Bench) -> None:
    async def empty(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=204)

    await bench.worker(empty)
    assert await bench.ask() == (204, b"")
    await over(bench)
    assert bench.count("requests_total", status="success") == 1
    assert bench.count(ROUNDTRIPS) == 1
