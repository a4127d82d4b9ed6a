"""The metrics of requests to an endpoint whose engine has faults."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
from aiohttp import web

from dynamometer.engines.interface import ModelCards, Route
from dynamometer.http import addresses, relay, server
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.http.origins import Origins
from dynamometer.http.server import Limits
from dynamometer.runtime import DistributedRuntime
from dynamometer.runtime.record import State
from dynamometer.worker.endpoint import Endpoint, engine_client
from dynamometer.worker.endpoint_metrics import EndpointMetrics
from processes import refusing_port
from raw_http import exchange
from waiting import until

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"no","code":500}}\n\n'


async def engine(request: web.Request) -> web.StreamResponse:
    """Does what the body says."""
    fault = await request.text()
    if fault.isdigit():
        return web.Response(status=int(fault), text="no")
    if fault == "404, slowly":
        refusal = web.StreamResponse(status=404)
        await refusal.prepare(request)
        await refusal.write(b"no")
        await asyncio.sleep(30)
        return refusal
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    if fault != "dies at once":
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
    if fault.startswith("dies"):
        assert request.transport is not None
        request.transport.abort()
    elif fault == "stays open":
        await response.write(DONE)
        await asyncio.sleep(30)
    elif fault == "says so":
        await response.write(ERROR)
        await asyncio.sleep(30)
    elif fault == "goes on":
        await asyncio.sleep(30)
    return response


class Worker:
    """An endpoint in this process."""

    def __init__(self, url: str, engine_url: str, runtime: DistributedRuntime) -> None:
        self.url = url
        self.engine_url = engine_url
        self._runtime = runtime

    def count(self, name: str, **labels: str) -> float:
        values = [
            sample.value
            for family in self._runtime.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert values, name
        return sum(values)

    def errors(self) -> float:
        return self.count("dynamo_component_errors_total", error_type="generate")


async def start(
    engine_url: str,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    state: State = State.READY,
) -> AsyncIterator[Worker]:
    runtime = DistributedRuntime()
    endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate")
    client = engine_client()
    handlers = Endpoint(
        engine_url=engine_url,
        routes={PATH: Route(PATH, "chat_completions")},
        metrics=EndpointMetrics(endpoint.metrics, runtime.registry, {"model": "m"}),
        client=client,
        state=lambda: state,
        models=ModelCards,
        api_key=api_key,
    ).handlers(Origins(origins))
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with server.serving(handlers, listener, limits=Limits(body_bytes=2**20)):
        yield Worker(addresses.url(listener), engine_url, runtime)
    client.close()


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    app = web.Application()
    app.router.add_post(PATH, engine)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener):
        async for made in start(addresses.url(listener)):
            yield made


@pytest.fixture
async def without_engine() -> AsyncIterator[Worker]:
    async for made in start(f"http://127.0.0.1:{refusing_port()}"):
        yield made


async def ask(worker: Worker, body: str) -> int:
    async with aiohttp.ClientSession() as client, client.post(worker.url + PATH, data=body) as got:
        try:
            await got.read()
        except aiohttp.ClientError:
            return -got.status  # broken off
        return got.status


@pytest.mark.parametrize(
    ("body", "status", "errors"),
    [
        ("all is well", 200, 0),
        ("400", 400, 0),
        ("500", 500, 1),
        ("dies at once", 502, 1),
        ("dies in the stream", -200, 1),
    ],
)
async def test_errors_are_counted_by_what_the_engine_did(
    worker: Worker, body: str, status: int, errors: int
) -> None:
    assert await ask(worker, body) == status
    assert worker.errors() == errors
    assert worker.count("dynamo_component_requests_total") == 1
    assert worker.count("dynamo_component_request_bytes_total") == len(body)
    assert worker.count("dynamo_component_inflight_requests") == 0
    answered = 0 if body == "dies at once" else 1
    first = worker.count("dynamo_work_handler_time_to_first_response_seconds_count")
    assert first == answered


async def test_an_engine_that_is_not_there_is_an_error(without_engine: Worker) -> None:
    assert await ask(without_engine, "hello") == 503
    assert without_engine.errors() == 1


async def may_be_sent_elsewhere(worker: Worker, body: str) -> bool:
    """Return whether the frontend may send the request to another worker."""
    async with aiohttp.ClientSession() as client, client.post(worker.url + PATH, data=body) as got:
        return relay.RETRY_HEADER.decode() in got.headers


@pytest.mark.parametrize("state", [state for state in State if state is not State.READY])
async def test_request_to_a_worker_that_is_not_ready_may_be_sent_elsewhere(state: State) -> None:
    requests = []

    async def note(request: web.Request) -> web.StreamResponse:
        requests.append(request)
        return web.Response()

    app = web.Application()
    app.router.add_post(PATH, note)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener):
        async for worker in start(addresses.url(listener), state=state):
            assert await ask(worker, "x") == 503
            assert await may_be_sent_elsewhere(worker, "x")
    assert requests == []


async def test_request_that_the_engine_did_not_get_may_be_sent_elsewhere(
    without_engine: Worker,
) -> None:
    assert await may_be_sent_elsewhere(without_engine, "x")


@pytest.mark.parametrize("body", ["all is well", "400", "429", "500", "503", "dies at once"])
async def test_request_that_the_engine_may_have_may_not_be_sent_elsewhere(
    worker: Worker, body: str
) -> None:
    assert not await may_be_sent_elsewhere(worker, body)


async def test_a_client_that_vanishes_is_a_cancellation_and_no_error(worker: Worker) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.post(worker.url + PATH, data="goes on") as answer,
    ):
        assert await answer.content.readany()
        answer.close()
    await until(lambda: worker.count("dynamo_component_cancellation_total"))
    assert worker.errors() == 0
    assert worker.count("dynamo_component_inflight_requests") == 0


@pytest.mark.parametrize(("body", "last"), [("stays open", DONE), ("says so", ERROR)])
async def test_a_client_that_closes_a_stream_at_its_last_event_has_not_vanished(
    worker: Worker, body: str, last: bytes
) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.post(worker.url + PATH, data=body) as answer,
    ):
        got = b""
        while not got.endswith(last):
            got += await answer.content.readany()
    await until(lambda: worker.count("dynamo_component_requests_total"))
    assert worker.count("dynamo_component_cancellation_total") == 0
    assert worker.errors() == 0


async def test_a_client_that_reads_no_more_of_an_error_than_its_status_has_not_vanished(
    worker: Worker,
) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.post(worker.url + PATH, data="404, slowly") as answer,
    ):
        assert answer.status == 404
        answer.close()
    await until(lambda: worker.count("dynamo_component_requests_total"))
    assert worker.count("dynamo_component_cancellation_total") == 0


async def test_a_connection_that_the_engine_closes_after_a_fault_costs_no_other_request() -> None:
    """SGLang's server answers 500 as if the connection were kept, and closes it a moment later."""

    async def faulty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                bad = await reader.readexactly(int(re.findall(rb"ength: (\d+)", head)[0])) == b"bad"
                status = b"500 Internal Server Error" if bad else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
                await asyncio.sleep(0.01)
                if bad:
                    break
        writer.close()

    async with await asyncio.start_server(faulty, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async for worker in start(f"http://{host}:{port}"):
            for _ in range(5):
                assert await ask(worker, "bad") == 500
                assert await ask(worker, "good") == 200
            assert worker.errors() == 5


async def test_bytes_are_those_of_the_answers_body(worker: Worker) -> None:
    assert await ask(worker, "all is well") == 200
    assert worker.count("dynamo_component_response_bytes_total") == len(b"data: {}\n\n")


def test_times_are_from_a_requests_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    runtime = DistributedRuntime()
    metrics = EndpointMetrics(runtime.metrics, runtime.registry, {})
    with metrics.request() as count:
        now[0] += 2
        count.record_status(200)
        now[0] += 1
        count.add_chunk(b"data: ")
        now[0] += 3
        count.add_chunk(b"{}")
    worker = Worker("", "", runtime)
    assert worker.count("dynamo_work_handler_time_to_first_response_seconds_sum") == 3
    assert worker.count("dynamo_component_request_duration_seconds_sum") == 6


@pytest.mark.parametrize("key", ["secret", "sécret", "s\udcffcret"])
async def test_models_are_listed_for_the_engines_key_alone(key: str) -> None:
    octets = key.encode("utf-8", "surrogateescape")
    async for worker in start("http://127.0.0.1:9", api_key=key):
        for path in (b"/v1/models", b"/v1/models/m"):
            listed = await authorized(worker, path, b"Bearer " + octets)
            assert listed == (200 if path == b"/v1/models" else 404)
            for wrong in (b"", b"Bearer", b"Bearer \xff", b"Bearer \xed\xa0\x80", b"\xc3\xa9"):
                assert await authorized(worker, path, wrong) == 401


async def authorized(worker: Worker, path: bytes, value: bytes) -> int:
    """Send any bytes as `Authorization`; the status of the answer."""
    host, port = worker.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    writer.write(b"Authorization: " + value + b"\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


async def sends(worker: Worker, data: bytes) -> bytes:
    """Send bytes on a connection of their own; return what is received until its end."""
    return await exchange(worker.url, data)


async def test_a_stream_for_an_http_1_0_client_ends_with_its_connection(worker: Worker) -> None:
    """aio-libs/aiohttp#526."""
    head = b"POST " + PATH.encode() + b" HTTP/1.0\r\nConnection: keep-alive\r\n"
    answer = await sends(worker, head + b"Content-Length: 11\r\n\r\nall is well")
    assert answer.endswith(b"\r\n\r\ndata: {}\n\n")
    assert b"connection: close" in answer.lower()
    assert b"transfer-encoding" not in answer.lower()


async def test_a_head_that_is_too_long_is_an_error_in_form_and_counted(worker: Worker) -> None:
    """vllm-project/vllm#23267."""
    head = b"POST " + PATH.encode() + b" HTTP/1.1\r\nA: "
    answer = await sends(worker, head + b"x" * 2**15 + b"\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code": "headers_too_large"' in answer
    assert worker.count("dynamo_component_requests_total") == 1


@pytest.mark.parametrize("allowed", [[], ["https://chat.example"], ["*"]])
async def test_web_pages_may_read_answers_where_their_origin_is_allowed(allowed: list[str]) -> None:
    async for worker in start("http://127.0.0.1:9", origins=allowed):
        asked = (
            b"OPTIONS %s HTTP/1.1\r\nOrigin: https://chat.example\r\nConnection: close\r\n"
            b"Access-Control-Request-Method: POST\r\n\r\n" % PATH.encode()
        )
        answer = (await sends(worker, asked)).lower()
        assert answer.startswith(b"http/1.1 204 " if allowed else b"http/1.1 405 ")
        assert (b"access-control-allow-origin" in answer) == bool(allowed)
        listed = b"GET /v1/models HTTP/1.1\r\nOrigin: https://chat.example\r\n"
        answer = (await sends(worker, listed + b"Connection: close\r\n\r\n")).lower()
        assert (b"access-control-allow-origin" in answer) == bool(allowed)
