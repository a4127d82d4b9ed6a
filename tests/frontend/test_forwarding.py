"""Forwarding to workers that have faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from bench import CHAT, Bench, Handler, breaks_off, fine, make_bench, nobody, of_aiohttp
from yarl import URL

from dynamometer.engines import kinds
from dynamometer.engines.answers import Answer, read_answer
from dynamometer.engines.interface import Route, Usage
from dynamometer.engines.mocker import Mocker
from dynamometer.engines.requests import RequestBody
from dynamometer.frontend import body, failures
from dynamometer.frontend.routing import AVOID_SECONDS
from dynamometer.http import openai_errors, relay
from dynamometer.http.messages import Headers
from dynamometer.runtime.record import State
from waiting import until

RETRIES = "dynamometer_frontend_retries_total"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with make_bench() as made:
        yield made


async def test_body_and_headers_go_through_unchanged(bench: Bench) -> None:
    seen: list[web.Request] = []

    async def echo(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        return web.Response(
            body=await request.read(), status=418, headers={"X-Engine": "yes", "Connection": "X-Y"}
        )

    await bench.worker(echo)
    sent = b' {"model":"m" , "x":1.10, "\xc3\xa9":"\\u00e9"}\n'
    headers = {"Authorization": "Bearer k", "X-Request-Id": "7", "Content-Type": "application/json"}
    url = URL(f"{bench.url}{CHAT}?a=b%20c", encoded=True)
    async with bench.session.post(url, data=sent, headers=headers) as got:
        assert (got.status, await got.read(), got.headers["X-Engine"]) == (418, sent, "yes")
    assert seen[0].headers["Authorization"] == "Bearer k"
    assert seen[0].headers["X-Request-Id"] == "7"
    assert seen[0].rel_url.raw_query_string == "a=b%20c"
    assert "Content-Encoding" not in seen[0].headers


async def test_a_compressed_request_is_understood(bench: Bench) -> None:
    await bench.worker(fine)
    async with bench.session.post(bench.url + CHAT, json={"model": "m"}, compress="gzip") as got:
        assert (got.status, await got.json(content_type=None)) == (200, {"model": "m"})


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_long_body_is_read_and_spliced_off_the_event_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    threads = []
    real_read, real_splice = body.read, RequestBody.with_usage

    def noted_read(*arguments: bytes, **options: Any) -> RequestBody:
        threads.append(threading.current_thread())
        return real_read(*arguments, **options)

    def noted_splice(request: RequestBody) -> bytes:
        threads.append(threading.current_thread())
        return real_splice(request)

    monkeypatch.setattr("dynamometer.frontend.forwarding.read", noted_read)
    monkeypatch.setattr(RequestBody, "with_usage", noted_splice)
    await bench.worker(fine)
    sent = {"model": "m", "stream": True, "x": "a" * 2**19}
    url = bench.url + CHAT
    async with bench.session.post(url, json=sent, compress=compressed or None) as got:
        usage = {"stream_options": {"include_usage": True}}
        assert await got.json(content_type=None) == sent | usage
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_long_answer_is_read_off_the_event_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noted(content: bytes, usage: Usage, *, samples: int) -> Answer:
        threads.append(threading.current_thread())
        return read_answer(content, usage, samples=samples)

    async def long(request: web.Request) -> web.StreamResponse:
        await request.read()
        embedding = [0.5] * 2**17
        return web.json_response({"data": [embedding], "usage": {"prompt_tokens": 7}})

    monkeypatch.setattr("dynamometer.frontend.forwarding.read_answer", noted)
    await bench.worker(long)
    assert (await bench.ask("/v1/embeddings"))[0] == 200
    await until(lambda: bench.count("input_sequence_tokens_sum", model="m") == 7)
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_a_stream_passes_byte_for_byte_less_the_usage_that_we_asked_for(bench: Bench) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())["stream_options"]
        assert asked == {"include_usage": True}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (b'data: {"choices":[{"delta":{"content":"a"', b'}}]}\n\n: hm\n\ndata: {"cho',
                     b'ices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\ndata: [DO',
                     b"NE]\n\n"):  # fmt: skip
            await response.write(part)
            await asyncio.sleep(0.01)
        return response

    await bench.worker(stream)
    status, body = await bench.ask(stream=True)
    assert status == 200
    assert body == b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n: hm\n\ndata: [DONE]\n\n'
    assert bench.count("output_tokens_total", model="m") == 9
    assert bench.count("input_sequence_tokens_sum", model="m") == 5


async def test_an_engine_that_always_says_usage_is_not_asked_and_nothing_is_taken_out(
    bench: Bench,
) -> None:
    stream = (
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'
        b"data: [DONE]\n\n"
    )
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        return web.Response(body=stream, content_type="text/event-stream")

    await bench.worker(answer, stream_usage=True)
    assert await bench.ask(stream=True) == (200, stream)
    assert asked == [{"model": "m", "stream": True}]
    assert bench.count("output_tokens_total", model="m") == 9


async def test_a_worker_of_an_unknown_engine_is_offered_no_request(bench: Bench) -> None:
    await bench.worker(fine, engine="of a later release")
    assert (await bench.ask())[0] == 503
    await bench.worker(fine)
    assert [(await bench.ask())[0] for _ in range(3)] == [200] * 3


class Few(Mocker):
    """An engine of fewer routes, and with another dialect at one of them."""

    name = "few"
    routes: Mapping[str, Route] = {CHAT: Route(CHAT, "chat_completions", Usage.NONE)}


async def test_routes_are_those_of_the_engine_that_serves_the_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds.ENGINES, Few.name, Few())
    await bench.worker(fine, engine=Few.name)
    status, body = await bench.ask("/v1/completions")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
    assert bench.count("requests_total", error_type="not_found") == 1
    for _ in range(3):
        await bench.worker(fine, engine=Few.name)
    await bench.worker(fine)
    assert [(await bench.ask("/v1/completions"))[0] for _ in range(5)] == [200] * 5
    bench.forget()
    await bench.worker(fine, engine=Few.name)
    # It is not asked for usage, which its dialect does not have.
    assert await bench.ask(stream=True) == (200, b'{"model": "m", "stream": true}')


async def test_an_answer_that_tells_no_tokens_is_not_kept(bench: Bench) -> None:
    block = b" " * 2**20

    async def long(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for _ in range(32):
            await response.write(block)
        return response

    await bench.worker(long)
    tracemalloc.start()
    try:
        async with bench.session.post(bench.url + "/tokenize", json={"model": "m"}) as answer:
            got = 0
            async for part in answer.content.iter_any():
                got += len(part)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got == 32 * len(block)
    assert most < 16 * len(block)


async def test_one_copy_of_a_long_body_is_kept_until_the_worker_answers() -> None:
    size, piece = 2**22, b"a" * 2**16
    head = b'{"model":"m","stream":true,"x":"'
    taken, answered = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")  # the usage that the frontend requests, at the body's end
        taken.set()
        await answered.wait()
        writer.close()

    async with (
        make_bench(max_body_size=2 * size) as bench,
        await asyncio.start_server(silent, "127.0.0.1", 0, limit=2 * size) as worker,
    ):
        bench.register(f"http://127.0.0.1:{worker.sockets[0].getsockname()[1]}")
        address = bench.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(*address)
        writer.write(
            b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(head) + size + 2, head)
        )
        tracemalloc.start()
        try:
            for _ in range(size // len(piece)):
                writer.write(piece)
                await writer.drain()
            writer.write(b'"}')
            async with asyncio.timeout(10):
                await taken.wait()
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        answered.set()
        assert b" 502 " in await reader.readline()
        writer.close()
    assert kept < 1.1 * size


async def test_a_worker_that_takes_no_connection_is_passed_over_once(bench: Bench) -> None:
    bench.register(nobody())
    await bench.worker(fine)
    for _ in range(4):
        assert (await bench.ask())[0] == 200
    assert bench.count("requests_total", status="success") == 4


async def test_workers_that_accept_no_connection_are_answered_with_503(bench: Bench) -> None:
    for _ in range(3):
        bench.register(nobody())
    async with bench.session.post(bench.url + CHAT, json={"model": "m"}) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert (await answer.json())["error"]["code"] == "unavailable"
    assert bench.count("requests_total", error_type="unavailable") == 1
    assert bench.count("inflight_requests") == 0


async def refuses_now(_: web.Request) -> web.StreamResponse:
    return of_aiohttp(openai_errors.unavailable("this worker is draining", retry=True))


async def resets(request: web.Request) -> web.StreamResponse:
    """Close the connection with the request in hand, before any byte of an answer."""
    await request.read()
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def engine_ends(_: web.Request) -> web.StreamResponse:
    return of_aiohttp(openai_errors.engine_died())


breaks_off_early = breaks_off(b'data: {"choices":[{"text":"a"}]}\n\n')


@pytest.mark.parametrize(
    ("workers", "status", "failure"),
    [
        (["refuses the connection"], 503, failures.NOT_REACHED),
        (["refuses the connection"] * 3, 503, failures.NOT_REACHED),
        ([refuses_now], 503, failures.NO_WORKER),
        ([refuses_now, "refuses the connection"], 503, failures.NOT_REACHED),
        (["refuses the connection", refuses_now], 503, failures.NO_WORKER),
        ([resets], 502, failures.WORKER_LOST),
        ([resets, resets], 502, failures.WORKER_LOST),
        # The first may have taken the request: the second does not get the request.
        ([resets, fine], 502, failures.WORKER_LOST),
        ([resets, "refuses the connection"], 502, failures.WORKER_LOST),
        (["refuses the connection", resets], 502, failures.WORKER_LOST),
        ([resets, refuses_now], 502, failures.WORKER_LOST),
        ([engine_ends, fine], 502, failures.ENGINE_DIED),
        ([breaks_off_early, fine], 200, failures.BROKEN_OFF),
    ],
)
async def test_what_a_client_and_the_page_read_of_a_failure(
    bench: Bench, workers: list[Handler | str], status: int, failure: failures.Failure
) -> None:
    for number, handler in enumerate(workers, 1):  # asked in the order of their ids
        if isinstance(handler, str):
            bench.register(nobody(), id=number)
        else:
            await bench.worker(handler, id=number)
    body = {"model": "m", "stream": True}
    async with bench.session.post(bench.url + CHAT, json=body) as answer:
        assert answer.status == status
        assert ("Retry-After" in answer.headers) == (status == 503)
        text = await answer.text()
    if status != 503:
        assert openai_errors.ENGINE_DIED in text
    else:
        assert "engine ended" not in text
    found = bench.count("failures_total", reason=failure.reason, **{"class": failure.kind})
    assert found == bench.count("failures_total") == 1
    assert bench.count("requests_total", error_type=failure.error) == 1
    assert bench.count("inflight_requests") == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_the_log_names_the_instance_whose_response_breaks_off(
    bench: Bench, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    await bench.worker(breaks_off(b"data: "), id=0xAB)
    body = {"model": "m", "stream": stream}
    with contextlib.suppress(aiohttp.ClientPayloadError):
        async with bench.session.post(bench.url + CHAT, json=body) as answer:
            await answer.read()
    assert "the connection to instance 00000000000000ab broke during its response" in caplog.text


@pytest.mark.parametrize("phase", ["prefill", "decode", "encode"])
async def test_a_model_whose_workers_cannot_answer_alone_is_503_with_the_reason(
    bench: Bench, phase: str
) -> None:
    asked = []

    async def never(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return web.Response()

    await bench.worker(never, mode=phase)
    for _ in range(2):  # the only model; then beside another one
        async with bench.session.post(bench.url + CHAT, json={"model": "m"}) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"]
            message = (await answer.json())["error"]["message"]
            assert f"'m' has only {phase} workers" in message
        await bench.worker(fine, model="other")
    assert not asked
    assert bench.count("requests_total", model="m", error_type="unavailable") == 2
    assert bench.count("model_ready", model="m") == bench.count("model_workers", model="m") == 0
    await bench.worker(fine)
    assert (await bench.ask())[0] == 200


async def test_an_adapters_request_goes_to_its_models_workers_as_it_is(bench: Bench) -> None:
    await bench.worker(fine, model="base")
    await bench.worker(fine, model="other")
    status, body = await bench.ask(model="base:adapter")
    assert (status, json.loads(body)["model"]) == (200, "base:adapter")
    assert bench.count("requests_total", model="base", status="success") == 1
    assert bench.count("requests_total", model="base:adapter") == 0
    assert (await bench.ask(model="unknown:adapter"))[0] == 404
    assert bench.count("requests_total", model="unknown_model", error_type="not_found") == 1
    bench.forget()
    assert (await bench.ask(model="base:adapter"))[0] == 503
    assert bench.count("requests_total", model="base", error_type="unavailable") == 1


async def test_an_adapter_that_the_engine_lists_is_asked_for_by_its_bare_name(
    bench: Bench,
) -> None:
    """SGLang lists it so, but would answer by the base model alone."""
    cards = {"base": {"id": "base", "parent": None}, "tuned": {"id": "tuned", "parent": "base"}}
    await bench.worker(fine, models=("base", "tuned"), model_info=cards)
    for asked, got in (("tuned", "base:tuned"), ("base", "base"), ("base:tuned", "base:tuned")):
        status, body = await bench.ask(model=asked, prompt='"model":"tuned"')
        assert (status, json.loads(body)) == (200, {"model": got, "prompt": '"model":"tuned"'})
    status, body = await bench.ask(model="tuned", stream=True)
    assert json.loads(body) == {
        "model": "base:tuned", "stream": True, "stream_options": {"include_usage": True}
    }  # fmt: skip
    assert bench.count("requests_total", model="tuned", endpoint="chat_completions") == 2
    assert bench.count("requests_total", model="base", status="success") == 2


async def test_a_form_for_an_adapter_goes_through_as_it_is(bench: Bench) -> None:
    await bench.worker(fine, model="tuned", model_info={"tuned": {"id": "tuned", "parent": "base"}})
    form = aiohttp.FormData({"model": "tuned"}, default_to_multipart=True)
    url = bench.url + "/v1/audio/transcriptions"
    async with bench.session.post(url, data=form) as answer:
        assert answer.status == 200
        assert b"base:" not in await answer.read()


async def test_a_served_name_with_a_colon_is_that_model(bench: Bench) -> None:
    async def other(_: web.Request) -> web.StreamResponse:
        return web.Response(status=418)

    await bench.worker(fine, model="base:v2")
    await bench.worker(other, model="base")
    for _ in range(3):
        assert (await bench.ask(model="base:v2"))[0] == 200
        assert (await bench.ask(model="base:v2:adapter"))[0] == 200
        assert (await bench.ask(model="base:v3"))[0] == 418
    assert bench.count("requests_total", model="base:v2", status="success") == 6


class Dies:
    """A worker that ends at one point of each request, and counts the requests."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.requests = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.point != "within the request":
            await request.read()
        assert request.transport is not None
        if self.point == "within the head of the answer":
            request.transport.write(b"HTTP/1.1 200 OK\r\nContent-")
            await asyncio.sleep(0.02)
        if self.point == "by a reset":
            linger = struct.pack("ii", 1, 0)
            raw = request.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.abort()
        return web.Response()


@pytest.mark.parametrize(
    "point",
    ["within the request", "after the request", "within the head of the answer", "by a reset"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_request_that_an_engine_may_have_taken_is_sent_to_no_other(
    bench: Bench, point: str, stream: bool
) -> None:
    workers = [Dies(point) for _ in range(3)]
    for worker in workers:
        await bench.worker(worker.answer)
    prompt = "x" * 2**19 if point == "within the request" else "x"
    status, answer = await bench.ask(prompt=prompt, stream=stream)
    assert status == 502
    assert json.loads(answer)["error"]["code"] == "engine_error"
    assert sum(worker.requests for worker in workers) == 1
    assert bench.count(RETRIES) == 0


async def test_request_that_no_engine_has_is_sent_to_one_other(bench: Bench) -> None:
    """Three workers do not have the request: the third is not asked."""
    asked = 0

    async def draining(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return await refuses_now(request)

    for _ in range(3):
        await bench.worker(draining)
    assert (await bench.ask())[0] == 503
    assert asked == 2
    assert bench.count(RETRIES, model="m", reason="worker_not_ready") == 1


@pytest.mark.parametrize("state", [state for state in State if state is not State.READY])
async def test_worker_gets_nothing_new_while_it_is_not_ready(bench: Bench, state: State) -> None:
    asked = 0

    async def answer(_: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.Response()

    await bench.worker(fine)
    record = await bench.worker(answer)
    bench.replace(replace(record, state=state))
    assert [(await bench.ask())[0] for _ in range(6)] == [200] * 6
    assert asked == bench.count(RETRIES) == 0
    bench.replace(record)
    assert [(await bench.ask())[0] for _ in range(6)] == [200] * 6
    assert asked == 3


async def test_retries_are_counted_by_reason_from_zero(bench: Bench) -> None:
    bench.register(nobody(), id=1)
    await bench.worker(fine, id=2)
    reasons = ("budget_exhausted", "cannot_connect", "worker_not_ready")
    series = [
        sample.labels
        for family in bench.registry.collect()
        for sample in family.samples
        if sample.name == RETRIES
    ]
    by_reason = sorted(series, key=lambda labels: labels["reason"])
    assert by_reason == [{"model": "m", "reason": reason} for reason in reasons]
    assert bench.count(RETRIES) == 0
    assert (await bench.ask())[0] == 200
    assert bench.count(RETRIES, reason="cannot_connect") == bench.count(RETRIES) == 1


async def test_retries_are_at_most_a_tenth_of_the_requests_and_a_few_more(bench: Bench) -> None:
    for _ in range(2):
        bench.register(nobody())
    started = time.monotonic()
    answers = [await bench.ask() for _ in range(200)]
    seconds = time.monotonic() - started
    retried = bench.count(RETRIES, reason="cannot_connect")
    assert 10 <= retried <= 10 + 0.1 * len(answers) + seconds
    assert bench.count(RETRIES, reason="budget_exhausted") == len(answers) - retried
    assert {status for status, _ in answers} == {503}
    assert {json.loads(body)["error"]["code"] for _, body in answers} == {"unavailable"}
    failure = failures.NOT_REACHED
    assert bench.count("failures_total", reason=failure.reason) == len(answers)


@pytest.mark.parametrize("fault", ["refuses the connection", refuses_now])
async def test_worker_that_refuses_is_avoided(bench: Bench, fault: Handler | str) -> None:
    if isinstance(fault, str):
        bench.register(nobody())
    else:
        await bench.worker(fault)
    await bench.worker(fine)
    started = time.monotonic()
    assert {(await bench.ask())[0] for _ in range(200)} == {200}
    assert 1 <= bench.count(RETRIES) <= 1 + (time.monotonic() - started) / AVOID_SECONDS


async def test_retries_of_one_model_leave_the_budget_of_another(bench: Bench) -> None:
    for number, model in enumerate(("m", "other")):
        bench.register(nobody(), model, id=1 + 2 * number)
        await bench.worker(refuses_now if model == "m" else fine, model, id=2 + 2 * number)
    while bench.count(RETRIES, model="m", reason="budget_exhausted") == 0:
        await bench.ask()
    assert (await bench.ask(model="other"))[0] == 200
    assert bench.count(RETRIES, model="other", reason="cannot_connect") == 1


async def test_a_request_that_its_engine_died_of_is_not_tried_elsewhere(bench: Bench) -> None:
    asked = 0

    async def died(_: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return of_aiohttp(openai_errors.engine_died())

    for _ in range(2):
        await bench.worker(died)
    status, body = await bench.ask()
    assert (status, asked) == (502, 1)
    assert b"engine ended" in body


async def test_a_worker_that_is_not_ready_is_tried_elsewhere(bench: Bench) -> None:
    async def draining(_: web.Request) -> web.StreamResponse:
        return of_aiohttp(openai_errors.unavailable("this worker is draining", retry=True))

    await bench.worker(draining)
    await bench.worker(fine)
    for _ in range(4):
        assert (await bench.ask())[0] == 200
    bench.forget()
    await bench.worker(draining)
    async with bench.session.post(bench.url + CHAT, json={"model": "m"}) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert relay.RETRY_HEADER.decode() not in answer.headers
    assert bench.count("requests_total", error_type="unavailable") == 1


async def test_a_stream_that_breaks_off_ends_with_an_error_event(bench: Bench) -> None:
    first = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    await bench.worker(breaks_off(first + b'data: {"half'))
    status, body = await bench.ask(stream=True)
    assert status == 200
    events = body.split(b"\n\n")
    assert events[0] + b"\n\n" == first
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "engine_error"
    assert events[2:] == [b""]
    assert bench.count("requests_total", error_type="unavailable", request_type="stream") == 1
    assert bench.count("output_tokens_total", model="m") == 1


async def test_a_connection_that_breaks_after_the_last_event_is_not_a_failure(bench: Bench) -> None:
    stream = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    await bench.worker(breaks_off(stream))
    assert await bench.ask(stream=True) == (200, stream)
    assert bench.count("failures_total") == 0


async def test_an_answer_that_breaks_off_is_no_whole_answer(bench: Bench) -> None:
    await bench.worker(breaks_off(b'{"half'))
    with pytest.raises(aiohttp.ClientError):
        await bench.ask()
    assert bench.count("requests_total", error_type="unavailable") == 1


async def test_an_error_event_in_a_whole_stream_is_counted_as_what_it_says(bench: Bench) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"error":{"message":"too long","code":400}}\n\n')
        return response

    await bench.worker(stream)
    assert (await bench.ask(stream=True))[0] == 200
    assert bench.count("requests_total", error_type="validation", model="m") == 1


@pytest.mark.parametrize(
    ("status", "error_type"),
    [(400, "validation"), (404, "not_found"), (429, "overload"), (500, "internal")],
)
async def test_the_engines_errors_pass_and_are_counted_by_kind(
    bench: Bench, status: int, error_type: str
) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "error", "message": "its own"}, status=status)

    await bench.worker(refuse)
    assert await bench.ask() == (status, b'{"object": "error", "message": "its own"}')
    assert bench.count("requests_total", error_type=error_type, model="m") == 1


async def test_no_worker_yet_is_503_and_so_is_a_model_whose_workers_are_away(bench: Bench) -> None:
    async with bench.session.post(bench.url + CHAT, json={"model": "m"}) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"]
    assert bench.count("requests_total", model="unknown_model", error_type="unavailable") == 1
    await bench.worker(fine)
    bench.forget()
    await bench.worker(fine, model="other")
    assert (await bench.ask())[0] == 503
    assert bench.count("requests_total", model="m", error_type="unavailable") == 1
    assert (await bench.ask(model="never-seen"))[0] == 404
    assert bench.count("requests_total", model="unknown_model", error_type="not_found") == 1


async def test_a_request_without_a_model_goes_to_the_only_one(bench: Bench) -> None:
    await bench.worker(fine)
    async with bench.session.post(bench.url + "/generate", json={"text": "x"}) as answer:
        assert answer.status == 200
    await bench.worker(fine, model="other")
    async with bench.session.post(bench.url + "/generate", json={"text": "x"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "model"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413_and_counted(chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 100
            await asyncio.sleep(0)

    async with make_bench(max_body_size=2000) as bench:
        await bench.worker(fine)
        data = parts() if chunked else b" " * 5000
        async with bench.session.post(bench.url + CHAT, data=data) as answer:
            assert answer.status == 413
            assert (await answer.json())["error"]["code"] == "request_too_large"
        assert bench.count("requests_total", error_type="validation") == 1
        assert (await bench.ask())[0] == 200


async def test_a_client_that_vanishes_closes_the_way_to_the_engine(bench: Bench) -> None:
    cancelled = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await request.read()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return web.Response()

    record = await bench.worker(wait)
    reader, writer = await asyncio.open_connection(*bench.url.removeprefix("http://").split(":"))
    body = b'{"model":"m"}'
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    await writer.drain()
    async with asyncio.timeout(5):
        while not bench.count("inflight_requests", model="m"):
            await asyncio.sleep(0.01)
        writer.close()
        await cancelled.wait()
        while bench.count("active_requests"):
            await asyncio.sleep(0.01)
    del reader
    assert bench.count("requests_total", error_type="cancelled", model="m") == 1
    assert bench.count("disconnected_clients") == 1
    assert bench.count("model_cancellation_total", model="m", request_type="unary") == 1
    assert bench.count("inflight_requests") == 0
    assert bench.router.choose("m") == record


@pytest.mark.parametrize("whole", [False, True])
async def test_a_client_that_closes_a_stream_at_its_last_event_has_not_vanished(
    bench: Bench, whole: bool
) -> None:
    """OpenAI's own client does so before the HTTP answer ends."""

    async def say(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'data: {"choices":[{"text":"a"}]}\n\n')
        if whole:
            await answer.write(b"data: [DONE]\n\n")
        await asyncio.sleep(30)
        return answer

    await bench.worker(say)
    body = {"model": "m", "stream": True}
    async with bench.session.post(bench.url + CHAT, json=body) as answer:
        last = b"data: [DONE]\n\n" if whole else b"}\n\n"
        got = b""
        while not got.endswith(last):
            got += await answer.content.readany()
    async with asyncio.timeout(5):
        while bench.count("active_requests"):
            await asyncio.sleep(0.01)
    assert bench.count("requests_total", status="success") == whole
    assert bench.count("requests_total", error_type="cancelled") == (not whole)
    assert bench.count("disconnected_clients") == (not whole)
    assert bench.count("model_cancellation_total") == (not whole)
    assert bench.count("output_tokens_total") == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_a_body_that_is_not_as_encoded_is_400_and_counted(
    bench: Bench, encoding: str
) -> None:
    await bench.worker(fine)
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    async with bench.session.post(
        bench.url + CHAT, data=b'{"model":"m"}', headers=headers
    ) as answer:
        assert answer.status == 400
        assert encoding in (await answer.json())["error"]["message"]
    assert bench.count("requests_total", error_type="validation") == 1


def test_an_engines_own_retry_header_goes_no_further() -> None:
    headers = Headers([(relay.RETRY_HEADER, b"1"), (b"x-engine", b"yes")])
    assert relay.response_headers(headers) == [(b"x-engine", b"yes")]


async def test_a_frontend_that_ends_closes_each_connection_after_its_response(bench: Bench) -> None:
    await bench.worker(fine)
    bench.forwarder.closes_connections = True
    async with bench.session.post(bench.url + CHAT, json={"model": "m"}) as answer:
        assert (answer.status, answer.headers["Connection"]) == (200, "close")


async def test_a_frontend_that_ends_takes_no_new_requests(bench: Bench) -> None:
    await bench.worker(fine)
    bench.forwarder.draining = True
    async with bench.session.post(bench.url + CHAT, json={"model": "m"}) as answer:
        assert (answer.status, answer.headers["Connection"]) == (503, "close")


async def test_garbage_on_the_socket_ends_nothing(bench: Bench) -> None:
    await bench.worker(fine)
    for garbage in (b"\x00" * 100, b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\x16\x03\x01"):
        address = bench.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as client:
            client.sendall(garbage)
        assert (await bench.ask())[0] == 200
