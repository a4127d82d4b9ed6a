"""The frontend's families after requests of every outcome."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from bench import CHAT, Bench, Handler, breaks_off, fine, make_bench, nobody, of_aiohttp
from prometheus_client import CollectorRegistry

from dynamometer.frontend import failures
from dynamometer.frontend.failures import Failure
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.http import openai_errors
from dynamometer.http.exchange import Stream
from waiting import until

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'
GAUGES = ("queued_requests", "active_requests", "inflight_requests", "stage_requests")
PLANE = "dynamo_request_plane_inflight_requests"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with make_bench(max_body_size=2**16) as made:
        yield made


def gauges(bench: Bench) -> dict[str, float]:
    """Return the gauges that are not 0."""
    found = {name: bench.count(name) for name in (*GAUGES, PLANE)}
    stages = {stage: bench.count("stage_requests", stage=stage) for stage in
              ("preprocess", "route", "dispatch")}  # fmt: skip
    return {name: value for name, value in (found | stages).items() if value}


class Steps:
    """A worker that streams, each step when the test says so."""

    def __init__(self) -> None:
        self.next = asyncio.Queue[bytes]()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while part := await self.next.get():
            await response.write(part)
        return response


async def streamed(request: web.Request) -> web.StreamResponse:
    """Four events with content."""
    await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in (EVENT, EVENT + EVENT, EVENT, USAGE, b"data: [DONE]\n\n"):
        await response.write(part)
        await asyncio.sleep(0.002)
    return response


async def test_a_request_is_queued_until_its_answers_first_byte(bench: Bench) -> None:
    worker = Steps()
    await bench.worker(worker.answer)
    asking = asyncio.create_task(bench.ask(stream=True))
    await until(lambda: bench.count("stage_requests", stage="dispatch"))
    waiting = {
        "queued_requests": 1,
        "active_requests": 1,
        "inflight_requests": 1,
        "stage_requests": 1,
        "dispatch": 1,
        PLANE: 1,
    }
    assert gauges(bench) == waiting
    worker.next.put_nowait(EVENT)
    await until(lambda: not bench.count("queued_requests"))
    assert gauges(bench) == {"active_requests": 1, "inflight_requests": 1, PLANE: 1}
    worker.next.put_nowait(b"")
    assert (await asking)[0] == 200
    assert gauges(bench) == {}


async def test_a_request_whose_body_is_still_coming_is_in_its_first_stage(bench: Bench) -> None:
    address = bench.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{")
    await until(lambda: bench.count("stage_requests", stage="preprocess", phase=""))
    assert gauges(bench) == {"stage_requests": 1, "preprocess": 1}
    writer.close()
    await until(lambda: not gauges(bench))
    assert bench.count("requests_total", error_type="cancelled", model="unknown_model") == 1
    assert bench.count("failures_total") == 0


async def test_each_stage_of_a_request_is_timed_once(bench: Bench) -> None:
    bench.register(nobody())
    await bench.worker(streamed)
    for _ in range(4):  # half of them are tried twice
        assert (await bench.ask(stream=True))[0] == 200
    assert (await bench.ask(model="never-seen"))[0] == 404
    stages = {stage: bench.count("stage_duration_seconds_count", stage=stage) for stage in
              ("preprocess", "route", "transport_roundtrip")}  # fmt: skip
    assert stages == {"preprocess": 5, "route": 4, "transport_roundtrip": 4}
    assert bench.count("dynamo_request_plane_queue_seconds_count") == 4
    assert bench.count("dynamo_request_plane_roundtrip_ttft_seconds_count") == 4
    plane = bench.count("dynamo_request_plane_roundtrip_ttft_seconds_sum")
    assert plane == bench.count("stage_duration_seconds_sum", stage="transport_roundtrip") > 0
    assert bench.count("failures_total") == 0 + 1  # the one for a model without a worker


async def test_a_stream_has_one_gap_less_than_events_with_content(bench: Bench) -> None:
    await bench.worker(streamed)
    for _ in range(3):
        assert (await bench.ask(stream=True))[0] == 200
    assert bench.count("inter_token_latency_seconds_count", model="m") == 3 * (4 - 1)
    assert bench.count("time_to_first_token_seconds_count", model="m") == 3
    assert bench.count("output_tokens_total", model="m") == 3 * 9
    until_last = bench.count("inter_token_latency_seconds_sum") + bench.count(
        "time_to_first_token_seconds_sum"
    )
    assert 0 < until_last <= bench.count("request_duration_seconds_sum")


async def test_a_client_that_leaves_mid_stream_is_cancelled_and_what_it_got_is_counted(
    bench: Bench,
) -> None:
    worker = Steps()
    await bench.worker(worker.answer)
    async with bench.session.post(bench.url + CHAT, json={"model": "m", "stream": True}) as answer:
        worker.next.put_nowait(EVENT)
        await answer.content.readany()
        worker.next.put_nowait(EVENT)
        await answer.content.readany()
        answer.close()
    await until(lambda: bench.count("requests_total"))
    assert bench.count("requests_total", request_type="stream", error_type="cancelled") == 1
    assert bench.count("model_cancellation_total", model="m", request_type="stream") == 1
    assert bench.count("disconnected_clients") == 1
    assert bench.count("failures_total") == 0
    assert bench.count("time_to_first_token_seconds_count", model="m") == 1
    assert bench.count("inter_token_latency_seconds_count", model="m") == 1
    assert bench.count("output_tokens_total", model="m") == 2
    assert gauges(bench) == {}


# How requests fail.


def answering(status: int) -> Handler:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "error", "message": "its own"}, status=status)

    return refuse


def saying(code: int) -> Handler:
    async def say(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"error":{"message":"x","code":%d}}\n\n' % code)
        return response

    return say


async def dying(request: web.Request) -> web.StreamResponse:
    await request.read()
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


breaking_off = breaks_off(EVENT)


async def died(_: web.Request) -> web.StreamResponse:
    return of_aiohttp(openai_errors.engine_died())


async def draining(_: web.Request) -> web.StreamResponse:
    return of_aiohttp(openai_errors.unavailable("this worker is draining", retry=True))


@pytest.mark.parametrize(
    ("handler", "stream", "failure"),
    [
        (answering(400), False, failures.REFUSED),
        (answering(401), False, failures.UNAUTHENTICATED),
        (answering(403), False, failures.FORBIDDEN),
        (answering(404), False, failures.NOT_FOUND),
        (answering(413), False, failures.TOO_LARGE),
        (answering(415), False, failures.UNSUPPORTED_MEDIA),
        (answering(422), True, failures.REFUSED),
        (answering(429), False, failures.RATE_LIMITED),
        (answering(500), False, failures.ENGINE_FAULT),
        (answering(501), False, failures.NOT_IMPLEMENTED),
        (answering(503), True, failures.OVERLOADED),
        (answering(529), False, failures.OVERLOADED),
        (answering(599), False, failures.ENGINE_FAULT),
        (saying(400), True, failures.REFUSED),
        (saying(500), True, failures.ENGINE_FAULT),
        (saying(-7), True, failures.REFUSED),
        (died, False, failures.ENGINE_DIED),
        (dying, True, failures.WORKER_LOST),
        (breaking_off, True, failures.BROKEN_OFF),
        (breaking_off, False, failures.BROKEN_OFF),
        (draining, False, failures.NO_WORKER),
    ],
)
async def test_a_request_that_fails_is_counted_once_by_class_and_reason(
    bench: Bench, handler: Handler, stream: bool, failure: Failure
) -> None:
    await bench.worker(handler)
    try:
        await bench.ask(stream=stream)
    except aiohttp.ClientError:
        assert handler is breaking_off
    await until(lambda: bench.count("requests_total"))
    assert bench.count("failures_total") == 1
    assert bench.count("failures_total", **{"class": failure.kind}, reason=failure.reason) == 1
    assert bench.count("requests_total", status="error", error_type=failure.error) == 1
    assert bench.count("requests_total") == bench.count("requests_started_total") == 1
    assert gauges(bench) == {}


@pytest.mark.parametrize("handler", [answering(499), saying(499)])
async def test_a_request_that_was_cancelled_has_not_failed(bench: Bench, handler: Handler) -> None:
    await bench.worker(handler)
    await bench.ask()
    assert bench.count("requests_total", status="error", error_type="cancelled") == 1
    assert bench.count("failures_total") == 0
    assert bench.count("disconnected_clients") == 0


def finishing(reason: str | None, *, done: bool = True, content: bool = True) -> Handler:
    """Answer with this finish reason, in a stream that ends well or in one piece."""

    async def finish(request: web.Request) -> web.StreamResponse:
        choice = {"index": 0, "delta": {"content": "a"} if content else {}, "finish_reason": reason}
        answer = json.dumps({"choices": [choice]})
        if b'"stream": true' not in await request.read():
            return web.Response(text=answer, content_type="application/json")
        stream = f"data: {answer}\n\n" + "data: [DONE]\n\n" * done
        return web.Response(text=stream, content_type="text/event-stream")

    return finish


async def ending_at_once(_: web.Request) -> web.StreamResponse:
    return web.Response(content_type="text/event-stream")


@pytest.mark.parametrize(
    ("handler", "failure"),
    [
        (finishing("error"), failures.ENGINE_FAULT),
        (finishing("error", done=False), failures.ENGINE_FAULT),
        (finishing("abort"), None),
        (finishing("abort", done=False, content=False), None),
        (finishing(None, done=False), failures.BROKEN_OFF),
        (ending_at_once, failures.BROKEN_OFF),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_stream_that_ends_well_is_counted_as_what_its_end_says(
    bench: Bench, handler: Handler, failure: Failure | None, path: str
) -> None:
    await bench.worker(handler)
    assert (await bench.ask(path, stream=True))[0] == 200
    await until(lambda: bench.count("requests_total"))
    error = failure.error if failure else "cancelled"
    assert bench.count("requests_total", status="error", error_type=error) == 1
    assert bench.count("requests_total") == 1
    assert bench.count("failures_total") == (failure is not None)
    if failure:
        assert bench.count("failures_total", reason=failure.reason) == 1
    assert bench.count("disconnected_clients") == 0


@pytest.mark.parametrize(
    ("reason", "error"), [("stop", ""), ("error", "internal"), ("abort", "cancelled")]
)
async def test_an_answer_in_one_piece_is_counted_as_what_its_finish_reason_says(
    bench: Bench, reason: str, error: str
) -> None:
    await bench.worker(finishing(reason))
    assert (await bench.ask())[0] == 200
    await until(lambda: bench.count("requests_total"))
    assert bench.count("requests_total", error_type=error) == bench.count("requests_total") == 1
    assert bench.count("failures_total") == (error == "internal")


ERROR = b'data: {"error":{"message":"x","code":500}}\n\n'


def stays_open_after(content: bytes) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(content)
        await asyncio.sleep(30)
        return response

    return handle


@pytest.mark.parametrize("more", [False, True])
async def test_a_client_that_closes_at_an_error_has_been_failed(bench: Bench, more: bool) -> None:
    """OpenAI's own client does so, and raises there."""
    await bench.worker(stays_open_after(EVENT + ERROR + EVENT * more))
    body = {"model": "m", "stream": True}
    async with bench.session.post(bench.url + CHAT, json=body) as answer:
        got = b""
        while ERROR not in got:
            got += await answer.content.readany()
    await until(lambda: bench.count("requests_total"))
    assert bench.count("requests_total", status="error", error_type="internal") == 1
    assert bench.count("failures_total", reason=failures.ENGINE_FAULT.reason) == 1
    assert bench.count("model_cancellation_total") == bench.count("disconnected_clients") == 0
    assert bench.count("output_tokens_total") == 1 + more
    assert gauges(bench) == {}


@pytest.mark.parametrize("more", [False, True])
async def test_of_two_errors_of_a_stream_the_one_told_last_is_counted(
    bench: Bench, more: bool
) -> None:
    await bench.worker(breaks_off(EVENT + ERROR + EVENT * more))
    async with counted(bench, failures.BROKEN_OFF):
        status, body = await bench.ask(stream=True)
    assert (status, body.count(b'"error"')) == (200, 2)
    assert bench.count("requests_total") == 1


async def test_an_error_that_could_not_be_sent_is_not_counted_as_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write finds that the client has gone."""

    def write(stream: Stream, _: bytes) -> None:
        stream._transport.abort()

    monkeypatch.setattr(Stream, "write", write)
    await bench.worker(stays_open_after(EVENT + ERROR))
    with pytest.raises(aiohttp.ClientError):
        await bench.ask(stream=True)
    assert bench.count("requests_total", error_type="cancelled") == 1
    assert bench.count("disconnected_clients") == 1
    assert bench.count("failures_total") == 0
    assert gauges(bench) == {}


@asynccontextmanager
async def counted(bench: Bench, failure: Failure) -> AsyncIterator[None]:
    def total() -> float:
        return bench.count("failures_total", **{"class": failure.kind}, reason=failure.reason)

    before = total(), bench.count("failures_total")
    yield
    assert (total(), bench.count("failures_total")) == (before[0] + 1, before[1] + 1)


async def test_what_the_frontend_itself_refuses_is_counted_by_class_and_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def post(data: bytes) -> int:
        async with bench.session.post(bench.url + CHAT, data=data) as answer:
            return answer.status

    async with counted(bench, failures.NO_WORKER):
        assert await post(b'{"model":"m"}') == 503
    bench.register(nobody())
    async with counted(bench, failures.NOT_REACHED):
        assert await post(b'{"model":"m"}') == 503
    async with counted(bench, failures.UNREADABLE):
        assert await post(b"{") == 400
    async with counted(bench, failures.NOT_FOUND):
        assert await post(b'{"model":"other"}') == 404
    async with counted(bench, failures.TOO_LARGE):
        assert await post(b" " * (2**16 + 1)) == 413
    bench.register(nobody(), "other")
    async with counted(bench, failures.REFUSED):
        assert await post(b"{}") == 400
    bench.forget()
    bench.register(nobody(), "third")
    async with counted(bench, failures.NO_WORKER):
        assert await post(b'{"model":"m"}') == 503

    def fault(_: object) -> None:
        raise RuntimeError("a fault of this frontend's")

    with monkeypatch.context() as patch:
        patch.setattr(bench.fleet, "resolve", fault, raising=True)
        async with counted(bench, failures.INTERNAL):
            assert await post(b'{"model":"m"}') == 500
    assert gauges(bench) == {}


async def test_a_client_that_reads_no_more_of_an_error_than_its_status_has_been_failed(
    bench: Bench,
) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        await response.write(b"no")
        await asyncio.sleep(30)
        return response

    await bench.worker(slowly)
    async with bench.session.post(bench.url + CHAT, json={"model": "m"}) as answer:
        assert answer.status == 400
        answer.close()
    await until(lambda: bench.count("requests_total"))
    assert bench.count("requests_total", error_type="validation") == 1
    assert bench.count("failures_total", reason=failures.REFUSED.reason) == 1
    assert bench.count("model_cancellation_total") == bench.count("disconnected_clients") == 0
    assert bench.count("stage_duration_seconds_count", stage="transport_roundtrip") == 1
    assert gauges(bench) == {}


async def test_a_request_for_which_the_engine_has_no_room_is_a_rejection(bench: Bench) -> None:
    await bench.worker(answering(503))
    for status in (503, 503):
        assert (await bench.ask())[0] == status
    rejected = {"model": "m", "endpoint": "chat_completions"}
    assert bench.count("model_rejection_total", **rejected) == 2
    assert bench.count("model_rejection_total") == 2


def test_a_name_that_is_not_registered_has_no_answers() -> None:
    """Series that stay at 0 would distort each mean over the models."""
    registry = CollectorRegistry()
    FrontendMetrics(registry).show_zeros(["m"])
    models: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if "model" in sample.labels:
                models.setdefault(family.name, set()).add(sample.labels["model"])
    answers = {name for name, shown in models.items() if shown == {"m"}}
    assert answers == {
        "dynamometer_frontend_retries",  # a request for an unknown model is not sent
        "dynamo_frontend_time_to_first_token_seconds",
        "dynamo_frontend_inter_token_latency_seconds",
        "dynamo_frontend_input_sequence_tokens",
        "dynamo_frontend_output_sequence_tokens",
        "dynamo_frontend_output_tokens",
        "dynamo_frontend_cached_tokens",
    }
    assert {len(shown) for name, shown in models.items() if name not in answers} == {2}


def test_every_failure_is_there_from_the_beginning() -> None:
    registry = CollectorRegistry()
    FrontendMetrics(registry)
    shown = {
        (sample.labels["class"], sample.labels["reason"])
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "dynamo_frontend_failures_total" and sample.value == 0
    }
    assert shown == {(failure.kind, failure.reason) for failure in failures.ALL}
    assert len(shown) == len(failures.ALL)
    assert {("InvalidRequest", "request.invalid"), ("NotFound", "request.not_found")} < shown


# What each worker did last.


def last(bench: Bench, name: str) -> dict[str, float]:
    return {
        sample.labels["worker_id"]: sample.value
        for family in bench.registry.collect()
        for sample in family.samples
        if sample.name == f"dynamo_frontend_worker_last_{name}"
        and sample.labels["dp_rank"] == "none"
        and sample.labels["worker_type"] == "decode"
    }


async def test_the_last_values_are_by_the_worker_that_answered(bench: Bench) -> None:
    worker = str((await bench.worker(streamed)).id)
    assert (await bench.ask(stream=True))[0] == 200
    assert last(bench, "input_sequence_tokens") == {worker: 5}
    first = last(bench, "time_to_first_token_seconds")
    assert first == {worker: bench.count("time_to_first_token_seconds_sum")}
    (gap,) = last(bench, "inter_token_latency_seconds").values()
    assert 0 < gap <= bench.count("inter_token_latency_seconds_sum")


async def test_a_worker_that_is_gone_leaves_no_series(bench: Bench) -> None:
    worker = Steps()
    await bench.worker(streamed)
    assert (await bench.ask(stream=True))[0] == 200
    bench.forget()
    assert last(bench, "input_sequence_tokens") == {}
    await bench.worker(worker.answer)
    asking = asyncio.create_task(bench.ask(stream=True))
    await until(lambda: bench.count("inflight_requests"))
    bench.forget()  # it goes while it answers
    for part in (EVENT, USAGE, b""):
        worker.next.put_nowait(part)
    assert (await asking)[0] == 200
    for name in ("input_sequence_tokens", "time_to_first_token_seconds",
                 "inter_token_latency_seconds"):  # fmt: skip
        assert last(bench, name) == {}


async def test_a_unary_answer_tells_its_workers_last_input_alone(bench: Bench) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        return web.Response(body=json.dumps({"usage": usage}).encode())

    worker = str((await bench.worker(answer)).id)
    assert (await bench.ask())[0] == 200
    assert last(bench, "input_sequence_tokens") == {worker: 7}
    assert last(bench, "time_to_first_token_seconds") == {}


async def test_a_worker_that_has_answered_nothing_tells_nothing(bench: Bench) -> None:
    await bench.worker(fine)
    assert (await bench.ask())[0] == 200
    assert last(bench, "input_sequence_tokens") == {}


async def test_an_engine_that_says_that_its_client_went_away_counts_a_cancellation(
    bench: Bench,
) -> None:
    async def closed(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response({"error": {"message": "closed"}}, status=499)

    await bench.worker(closed)
    assert (await bench.ask(CHAT, model="m"))[0] == 499
    assert bench.count("requests_total", error_type="cancelled") == 1
    assert bench.count("model_cancellation_total") == 1
    assert bench.count("disconnected_clients") == 0
    assert bench.count("failures_total") == 0


async def test_an_answer_that_is_an_error_has_no_tokens(bench: Bench) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        await request.read()
        usage = {"prompt_tokens": 5, "completion_tokens": 9}
        return web.json_response({"error": {"message": "no"}, "usage": usage}, status=400)

    await bench.worker(refuse)
    assert (await bench.ask(CHAT, model="m"))[0] == 400
    assert bench.count("output_tokens_total") == 0
    assert bench.count("input_sequence_tokens_count") == 0
