"""One request at a prefill and a decode worker, whose answers a test sends."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from bench import CHAT, Bench, fine, nobody
from sides import SECONDS, Exchange, Pairing, Side, make_pairing

from dynamometer.engines import kinds
from dynamometer.engines.interface import Pairing as RoutePairing
from dynamometer.engines.requests import RequestBody
from dynamometer.frontend import failures
from dynamometer.frontend import pairing as pairing_module
from dynamometer.frontend.failures import Failure
from dynamometer.http import openai_errors
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL, State
from waiting import until

RETRIES = "dynamometer_frontend_retries_total"
PAIRED = [path for path, route in kinds.ROUTES.items() if route.pairing is RoutePairing.PAIR]
ALONE = [path for path, route in kinds.ROUTES.items() if route.pairing is RoutePairing.ALONE]
NONE = [path for path, route in kinds.ROUTES.items() if route.pairing is RoutePairing.NONE]
ANSWER = b'{"usage":{"prompt_tokens":5,"completion_tokens":9},"choices":[]}'
EVENTS = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'
    b"data: [DONE]\n\n"
)


@pytest.fixture
async def pairing() -> AsyncIterator[Pairing]:
    async with make_pairing() as made:
        yield made


class Answer:
    """The answer to a request of `asking`, as soon as it is complete."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def asking(
    bench: Bench, path: str = CHAT, *, headers: dict[str, str] | None = None, **body: object
) -> asyncio.Task[Answer]:
    data = io.BytesIO(json.dumps({"model": "m"} | body).encode())

    async def ask() -> Answer:
        async with (
            asyncio.timeout(SECONDS),
            bench.session.post(bench.url + path, data=data, headers=headers) as answer,
        ):
            return Answer(answer.status, await answer.read(), dict(answer.headers))

    return asyncio.create_task(ask())


def show(bench: Bench, side: Side, state: str) -> None:
    """Show another state of a worker in discovery."""
    side.record = replace(side.record, state=state)
    bench.replace(side.record)


async def nothing_in_flight(bench: Bench, *sides: Side) -> None:
    await until(lambda: not bench.forwarder.active and not bench.count("inflight_requests"))
    assert [bench.router.in_flight(side.record.id) for side in sides] == [0] * len(sides)


# The request.


@pytest.mark.parametrize("path", PAIRED)
async def test_both_workers_receive_the_request_and_the_decode_workers_answer_is_the_clients(
    pairing: Pairing, path: str
) -> None:
    asked = asking(pairing.bench, f"{path}?a=b", headers={"Authorization": "Bearer k"}, x=1.5)
    first, second = await pairing.both()
    room = second.body["bootstrap_room"]
    assert first.body == second.body == {
        "model": "m", "x": 1.5, "bootstrap_host": "::1", "bootstrap_port": 8998,
        "bootstrap_room": room,
    }  # fmt: skip
    assert 2**32 <= room < 2**62
    for exchange in (first, second):
        assert exchange.path == f"{path}?a=b"
        assert exchange.headers["authorization"] == "Bearer k"
    first.answer(b'{"of": "prefill"}')
    second.answer(b'{"of": "decode"}', headers={"X-Engine": "yes"})
    answer = await asked
    assert (answer.status, answer.body) == (200, b'{"of": "decode"}')
    assert answer.headers["X-Engine"] == "yes"


async def test_each_request_has_a_room_of_its_own(pairing: Pairing) -> None:
    rooms = set()
    for _ in range(20):
        asked = asking(pairing.bench)
        first, second = await pairing.both()
        rooms.add(first.body["bootstrap_room"])
        first.answer()
        second.answer()
        await asked
    assert len(rooms) == 20
    assert (pairing.prefill.connections, pairing.decode.connections) == (1, 1)


async def test_only_the_decode_worker_streams(pairing: Pairing) -> None:
    asked = asking(pairing.bench, stream=True)
    first, second = await pairing.both()
    room = {name: first.body[name] for name in first.body if name.startswith("bootstrap")}
    # SGLang's Rust server refuses options without a stream.
    assert first.body == {"model": "m", "stream": False, "stream_options": None} | room
    usage = {"stream_options": {"include_usage": True}}
    assert second.body == {"model": "m", "stream": True} | usage | room
    second.begin()
    first.answer(ANSWER)
    second.write(EVENTS)
    second.end()
    answer = await asked
    assert answer.status == 200
    # Without the usage that the client did not request.
    assert answer.body == EVENTS.replace(EVENTS.split(b"\n\n")[1] + b"\n\n", b"")
    await nothing_in_flight(pairing.bench, pairing.prefill, pairing.decode)


@pytest.mark.parametrize("path", ["/generate", "/v1/messages", "/v1/responses"])
async def test_routes_without_stream_options_get_none(pairing: Pairing, path: str) -> None:
    asked = asking(pairing.bench, path, stream=True)
    first, second = await pairing.both()
    assert second.body["stream"] is True
    assert first.body == second.body | {"stream": False}
    assert "stream_options" not in first.body
    first.answer()
    second.answer()
    assert (await asked).status == 200


async def test_a_stream_arrives_while_it_is_computed(pairing: Pairing) -> None:
    bench = pairing.bench
    body = {"model": "m", "stream": True}
    asked = asyncio.create_task(bench.session.post(bench.url + CHAT, json=body))
    first, second = await pairing.both()
    first.answer()
    second.begin()
    async with asyncio.timeout(SECONDS), await asked as answer:
        for number in range(3):
            event = b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number
            second.write(event)
            assert await answer.content.readexactly(len(event)) == event
        second.end()


async def test_a_batch_has_one_room(pairing: Pairing) -> None:
    asked = asking(pairing.bench, "/v1/completions", prompt=["a", "b", "c"])
    first, second = await pairing.both()
    assert isinstance(first.body["bootstrap_room"], int)
    assert first.body == second.body
    first.answer()
    second.answer()
    assert (await asked).status == 200


async def test_members_that_are_null_are_replaced_and_not_repeated(pairing: Pairing) -> None:
    """SGLang's Rust server refuses an object that has a name twice."""
    asked = asking(pairing.bench, bootstrap_room=None, bootstrap_host=None, stream=False)
    for exchange in await pairing.both():
        names = [name for name, _ in json.loads(exchange.content, object_pairs_hook=list)]
        assert len(set(names)) == len(names)
        assert exchange.body["bootstrap_room"] >= 2**32
        exchange.answer()
    assert (await asked).status == 200


async def test_an_adapter_is_requested_by_its_name_from_both(pairing: Pairing) -> None:
    bench = pairing.bench
    cards = {"base": {"id": "base", "parent": None}, "tuned": {"id": "tuned", "parent": "base"}}
    bench.forget()
    fields: dict[str, Any] = {"models": ("base", "tuned"), "model_info": cards}
    pairing.prefill = await pairing.side(PREFILL, **fields)
    pairing.decode = await pairing.side(DECODE, **fields)
    for stream in (False, True):
        asked = asking(bench, model="tuned", stream=stream)
        for exchange in await pairing.both():
            assert exchange.body["model"] == "base:tuned"
            exchange.answer()
        assert (await asked).status == 200


async def test_labels_and_overrides_of_clients_reach_neither(pairing: Pairing) -> None:
    sent = {
        "X-Custom-Labels": "{}",
        "X-Override-Bootstrap-Room": "7",
        "X-Override-Rid": "7",
        "X-Data-Parallel-Rank": "1",
        "X-Request-Id": "kept",
    }
    asked = asking(pairing.bench, headers=sent, custom_labels={"a": "b"}, stream=True)
    for exchange in await pairing.both():
        assert exchange.body["custom_labels"] is None
        assert exchange.headers["x-request-id"] == "kept"
        assert not {name.lower() for name in sent} - {"x-request-id"} & exchange.headers.keys()
        exchange.answer()
    assert (await asked).status == 200


async def test_overrides_of_clients_are_removed_in_every_mode(pairing: Pairing) -> None:
    seen: list[Any] = []

    async def answer(request: Any) -> Any:
        seen.append(request)
        return await fine(request)

    await pairing.bench.worker(answer)
    headers = {"X-Override-Bootstrap-Room": "7", "X-Data-Parallel-Rank": "1"}
    assert (await asking(pairing.bench, headers=headers)).status == 200
    assert "X-Override-Bootstrap-Room" not in seen[0].headers
    assert seen[0].headers["X-Data-Parallel-Rank"] == "1"


async def test_a_large_body_is_edited_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    real = RequestBody.set_members

    def noted(body: RequestBody, members: Any) -> None:
        threads.append(threading.current_thread())
        real(body, members)

    monkeypatch.setattr(RequestBody, "set_members", noted)
    text = "a" * 2**24
    async with make_pairing(max_body_size=2**25) as pairing:
        asked = asking(pairing.bench, stream=True, x=text)
        first, second = await pairing.both()
        for exchange, stream in ((first, False), (second, True)):
            body = exchange.body
            assert (body["stream"], body["x"]) == (stream, text)
            assert body["bootstrap_port"] == 8998
            exchange.answer()
        assert (await asked).status == 200
    assert threads
    assert threading.main_thread() not in threads


async def test_a_long_answer_of_the_prefill_worker_is_not_kept(pairing: Pairing) -> None:
    block = b" " * 2**20
    tracemalloc.start()
    try:
        asked = asking(pairing.bench)
        first, second = await pairing.both()
        second.answer()
        first.begin("application/json")
        for _ in range(32):
            first.write(block)
            await first._writer.drain()
        first.end()
        assert (await asked).status == 200
        await left(pairing, pairing.prefill)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 16 * len(block)


# Counts.


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_is_counted_once(pairing: Pairing, stream: bool) -> None:
    bench = pairing.bench
    asked = asking(bench, stream=stream)
    first, second = await pairing.both()
    in_flight = bench.router.in_flight
    assert [in_flight(side.record.id) for side in (pairing.prefill, pairing.decode)] == [1, 1]
    assert bench.count("inflight_requests", model="m") == 1
    if stream:
        second.begin()
        second.write(EVENTS)
    first.answer(ANSWER)
    await left(pairing, pairing.prefill)
    assert in_flight(pairing.decode.record.id) == 1
    if stream:
        second.end()
    else:
        second.answer(ANSWER)
    assert (await asked).status == 200
    await nothing_in_flight(bench, pairing.prefill, pairing.decode)
    assert bench.count("requests_total") == bench.count("requests_total", status="success") == 1
    assert bench.count("output_tokens_total", model="m") == 9
    assert bench.count("input_sequence_tokens_sum", model="m") == 5
    assert bench.count("input_sequence_tokens_count", model="m") == 1
    assert bench.count("time_to_first_token_seconds_count", model="m") == (1 if stream else 0)
    assert bench.count("failures_total") == bench.count(RETRIES) == 0


# A worker that fails. A second pair that arrives meanwhile would take a request that is sent again.


async def another_pair(pairing: Pairing) -> tuple[Side, Side]:
    return await pairing.side(PREFILL), await pairing.side(DECODE)


def failing_and_other(
    pairing: Pairing, mode: str, exchanges: tuple[Exchange, Exchange]
) -> tuple[Exchange, Exchange]:
    return exchanges if mode == PREFILL else (exchanges[1], exchanges[0])


async def failed_once(pairing: Pairing, others: tuple[Side, Side], failure: Failure) -> None:
    """The request was counted once, was sent to one pair only, and is over."""
    bench = pairing.bench
    await nothing_in_flight(bench, pairing.prefill, pairing.decode, *others)
    assert bench.count("requests_total") == 1
    assert (
        bench.count("failures_total", reason=failure.reason) == bench.count("failures_total") == 1
    )
    assert bench.count(RETRIES) == 0
    assert [side.requests for side in (pairing.prefill, pairing.decode)] == [1, 1]
    assert [side.requests for side in others] == [0, 0]


@pytest.mark.parametrize("status", [400, 401, 422, 500, 502, 503])
@pytest.mark.parametrize("mode", [PREFILL, DECODE])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_of_one_worker_is_the_clients_and_ends_the_request_at_the_other(
    pairing: Pairing, status: int, mode: str, stream: bool
) -> None:
    asked = asking(pairing.bench, stream=stream)
    failing, other = failing_and_other(pairing, mode, await pairing.both())
    others = await another_pair(pairing)
    failing.answer(b'{"error": {"message": "of the engine"}}', status)
    await other.closed()
    answer = await asked
    assert (answer.status, answer.error) == (status, {"message": "of the engine"})
    failure = failures.of_answer(status)
    assert failure is not None
    await failed_once(pairing, others, failure)


async def test_an_error_of_the_prefill_worker_after_the_head_of_the_decode_worker_is_a_status(
    pairing: Pairing,
) -> None:
    """SGLang sends the head of a stream of /generate at once."""
    asked = asking(pairing.bench, "/generate", stream=True)
    first, second = await pairing.both()
    await begun(second)
    first.answer(b'{"error": {"message": "no room"}}', 500)
    await second.closed()
    assert (await asked).status == 500


async def begun(exchange: Exchange) -> None:
    """Send the head of a stream, and let the frontend read it."""
    exchange.begin()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("mode", [PREFILL, DECODE])
@pytest.mark.parametrize("phase", ["before its head", "after its head", "after the other's head"])
async def test_a_connection_that_breaks_ends_the_request_at_both(
    pairing: Pairing, mode: str, phase: str
) -> None:
    asked = asking(pairing.bench, stream=True)
    failing, other = failing_and_other(pairing, mode, await pairing.both())
    others = await another_pair(pairing)
    if phase != "before its head":
        await begun(failing if phase == "after its head" else other)
    failing.break_off()
    await other.closed()
    answer = await asked
    assert (answer.status, answer.error["code"]) == (502, "engine_error")
    await failed_once(pairing, others, failures.WORKER_LOST)


@pytest.mark.parametrize("event", ["answers", "fails", "refuses", "breaks off", "is lost", "none"])
async def test_no_event_at_the_prefill_worker_changes_an_answer_that_has_content(
    pairing: Pairing, event: str
) -> None:
    """A prefill worker behind a long prompt answers later than the decode worker."""
    bench = pairing.bench
    body = {"model": "m", "stream": True}
    asked = asyncio.create_task(bench.session.post(bench.url + CHAT, json=body))
    first, second = await pairing.both()
    second.begin()
    parts = EVENTS.split(b"\n\n")
    second.write(parts[0] + b"\n\n")
    async with asyncio.timeout(SECONDS), await asked as answer:
        assert answer.status == 200
        assert await answer.content.readexactly(len(parts[0]) + 2) == parts[0] + b"\n\n"
        if event == "answers":
            first.answer(ANSWER)
        elif event == "fails":
            first.answer(b"{}", 500)
        elif event == "refuses":
            first.refuse()
        elif event == "breaks off":
            first.break_off()
        elif event == "is lost":
            show(bench, pairing.prefill, State.UNRESPONSIVE)
        if event not in ("is lost", "none"):
            await left(pairing, pairing.prefill)
        second.write(b"\n\n".join(parts[1:]))
        second.end()
        assert await answer.read() == parts[2] + b"\n\n"
    await nothing_in_flight(bench, pairing.decode)
    assert bench.count("requests_total") == bench.count("requests_total", status="success") == 1
    assert bench.count("output_tokens_total", model="m") == 9
    assert bench.count("failures_total") == 0
    if event in ("is lost", "none"):
        # The prefill worker still has the request, and its connection is kept after its answer.
        assert bench.router.in_flight(pairing.prefill.record.id) == 1
        first.answer()
        await left(pairing, pairing.prefill)
        show(bench, pairing.prefill, State.READY)
        asked_again = asking(bench)
        for exchange in await pairing.both():
            exchange.answer()
        assert (await asked_again).status == 200
        assert pairing.prefill.connections == 1


async def test_an_unfinished_error_that_arrives_with_the_answer_is_closed(pairing: Pairing) -> None:
    asked = asking(pairing.bench, stream=True)
    first, second = await pairing.both()
    second.begin()
    first.begin("application/json", 500)
    second.write(EVENTS)
    second.end()
    assert (await asked).status == 200
    await first.closed()
    await nothing_in_flight(pairing.bench, pairing.prefill, pairing.decode)


async def test_a_decode_worker_that_breaks_before_its_head_after_the_prefill_is_lost(
    pairing: Pairing,
) -> None:
    asked = asking(pairing.bench)
    first, second = await pairing.both()
    others = await another_pair(pairing)
    first.answer()
    await left(pairing, pairing.prefill)
    second.break_off()
    assert (await asked).status == 502
    await failed_once(pairing, others, failures.WORKER_LOST)


async def left(pairing: Pairing, side: Side) -> None:
    """Wait until the frontend has read the answer of a worker."""
    await until(lambda: not pairing.bench.router.in_flight(side.record.id))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_breaks_off_after_the_prefill_ends_as_any_other(
    pairing: Pairing, stream: bool
) -> None:
    bench = pairing.bench
    body = {"model": "m", "stream": stream}
    asked = asyncio.create_task(bench.session.post(bench.url + CHAT, json=body))
    first, second = await pairing.both()
    others = await another_pair(pairing)
    first.answer()
    second.begin("text/event-stream" if stream else "application/json")
    event = EVENTS.split(b"\n\n")[0] + b"\n\n"
    second.write(event)
    async with asyncio.timeout(SECONDS), await asked as answer:
        assert answer.status == 200
        assert await answer.content.readexactly(len(event)) == event
        second.break_off()
        if stream:
            assert openai_errors.ENGINE_DIED in (await answer.read()).decode()
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
    await failed_once(pairing, others, failures.BROKEN_OFF)


LOST = [State.UNRESPONSIVE, State.RESTARTING, State.FAILED, State.STARTING, "gone"]


@pytest.mark.parametrize("state", LOST)
@pytest.mark.parametrize("mode", [PREFILL, DECODE])
async def test_a_worker_that_is_lost_in_discovery_ends_the_request_at_both(
    pairing: Pairing, caplog: pytest.LogCaptureFixture, mode: str, state: str
) -> None:
    bench = pairing.bench
    asked = asking(bench, stream=True)
    first, second = await pairing.both()
    others = await another_pair(pairing)
    side = pairing.prefill if mode == PREFILL else pairing.decode
    if state == "gone":
        bench.remove(side.record)
    else:
        show(bench, side, state)
    await first.closed()
    await second.closed()
    answer = await asked
    assert (answer.status, answer.error["code"]) == (502, "engine_error")
    changed = f"The state of the {mode} worker became {state} during this request"
    ended = f"The {mode} worker ended during this request"
    assert answer.error["message"] == (ended if state == "gone" else changed)
    event = "has left discovery" if state == "gone" else f"is {state}"
    worker = f"{mode} worker {side.record.id:016x}"
    assert caplog.messages == [f"{worker} {event}: 1 request to this worker and another one failed"]
    # A worker whose record is there lives: its engine ended or hangs.
    failure = failures.WORKER_LOST if state == "gone" else failures.ENGINE_DIED
    await failed_once(pairing, others, failure)


@pytest.mark.parametrize("mode", [PREFILL, DECODE])
@pytest.mark.parametrize("state", [State.READY, State.UNRESPONSIVE])
async def test_a_record_that_is_removed_and_restored_ends_only_requests_at_a_lost_worker(
    pairing: Pairing, monkeypatch: pytest.MonkeyPatch, mode: str, state: State
) -> None:
    monkeypatch.setattr(pairing_module, "RESTORE_SECONDS", 0.1)
    asked = asking(pairing.bench, stream=True)
    first, second = await pairing.both()
    side = pairing.prefill if mode == PREFILL else pairing.decode
    passed = asyncio.Event()
    pairing.bench.remove(side.record)
    asyncio.get_running_loop().call_later(0.1, passed.set)
    pairing.bench.restore(replace(side.record, state=state))
    await passed.wait()
    if state is State.READY:
        first.answer()
        second.begin()
        second.write(EVENTS)
        second.end()
    assert (await asked).status == (200 if state is State.READY else 502)


@pytest.mark.parametrize("mode", [PREFILL, DECODE])
async def test_a_worker_that_drains_finishes_the_request_and_gets_no_other(
    pairing: Pairing, mode: str
) -> None:
    asked = asking(pairing.bench)
    first, second = await pairing.both()
    show(pairing.bench, pairing.prefill if mode == PREFILL else pairing.decode, State.DRAINING)
    assert (await asking(pairing.bench)).status == 503
    first.answer()
    second.answer(ANSWER)
    assert (await asked).body == ANSWER
    assert (pairing.prefill.requests, pairing.decode.requests) == (1, 1)


async def test_a_prefill_worker_that_never_answers_does_not_keep_the_request(
    pairing: Pairing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of /generate reports errors as events, also those before the transfer."""
    monkeypatch.setattr("dynamometer.frontend.pairing._LATE_SECONDS", 0.05)
    asked = asking(pairing.bench, "/generate", stream=True)
    first, second = await pairing.both()
    second.begin()
    second.write(
        b'data: {"error": {"message": "transfer failed", "code": 500}}\n\ndata: [DONE]\n\n'
    )
    second.end()
    assert b"transfer failed" in (await asked).body
    await first.closed()
    await nothing_in_flight(pairing.bench, pairing.prefill, pairing.decode)
    assert pairing.bench.count("requests_total", error_type="internal") == 1


@pytest.mark.parametrize("mode", [PREFILL, DECODE])
async def test_after_the_prefill_no_state_in_discovery_ends_the_request(
    pairing: Pairing, mode: str
) -> None:
    """The same holds for a worker that answers alone: the request goes on with its engine."""
    asked = asking(pairing.bench)
    first, second = await pairing.both()
    first.answer()
    await left(pairing, pairing.prefill)
    show(pairing.bench, pairing.prefill if mode == PREFILL else pairing.decode, State.UNRESPONSIVE)
    second.answer(ANSWER)
    assert (await asked).body == ANSWER


# A worker that does not take the request.


@pytest.mark.parametrize("mode", [PREFILL, DECODE])
async def test_a_worker_without_a_connection_leaves_the_other_without_the_request(
    pairing: Pairing, mode: str
) -> None:
    bench = pairing.bench
    bench.forget()
    other = await pairing.side(DECODE if mode == PREFILL else PREFILL)
    refusing = bench.register(nobody(), mode=mode, bootstrap="127.0.0.1:8998")
    for _ in range(3):
        answer = await asking(bench)
        assert answer.status == 503
        assert answer.headers["Retry-After"]
    # The prefill worker is connected first; its connection is kept for the next request.
    assert (other.connections, other.requests) == (1 if mode == DECODE else 0, 0)
    assert bench.count("failures_total", reason=failures.NOT_REACHED.reason) == 3
    assert bench.count(RETRIES) == 0  # no other worker has the mode
    assert bench.router.in_flight(refusing.id) == bench.router.in_flight(other.record.id) == 0


@pytest.mark.parametrize("mode", [PREFILL, DECODE])
async def test_a_worker_without_a_connection_is_replaced_by_another_one_of_its_mode(
    pairing: Pairing, mode: str
) -> None:
    bench = pairing.bench
    bench.register(nobody(), mode=mode, bootstrap="127.0.0.1:8998")
    for number in range(4):
        asked = asking(bench)
        for exchange in await pairing.both():
            exchange.answer(ANSWER)
        assert (await asked).status == 200
        assert pairing.decode.connections == pairing.prefill.connections == 1, number
    assert bench.count(RETRIES) == bench.count(RETRIES, reason="cannot_connect") > 0


async def test_a_request_that_both_refuse_is_sent_to_another_pair_once(pairing: Pairing) -> None:
    bench = pairing.bench
    asked = asking(bench)
    refused = await pairing.both()
    others = await another_pair(pairing)
    third = await another_pair(pairing)
    for exchange in refused:
        exchange.refuse()
    retried = await arrived([*others, *third])
    assert retried[0].body["bootstrap_room"] != refused[0].body["bootstrap_room"]
    assert retried[0].body == retried[1].body
    for exchange in retried:
        exchange.refuse()
    answer = await asked
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    assert bench.count(RETRIES) == bench.count(RETRIES, reason="worker_not_ready") == 1
    assert sum(side.requests for side in (*others, *third)) == 2
    assert (pairing.prefill.requests, pairing.decode.requests) == (1, 1)


async def arrived(sides: list[Side]) -> tuple[Exchange, Exchange]:
    """Wait for a request at one prefill and one decode worker of several."""
    await until(lambda: sum(side.requests for side in sides) == 2)
    found = [side for side in sides if side.requests]
    found.sort(key=lambda side: side.record.mode == DECODE)
    assert [side.record.mode for side in found] == [PREFILL, DECODE]
    return await found[0].next(), await found[1].next()


@pytest.mark.parametrize("mode", [PREFILL, DECODE])
async def test_a_request_that_only_one_refuses_is_not_sent_again(
    pairing: Pairing, mode: str
) -> None:
    asked = asking(pairing.bench)
    refusing, other = failing_and_other(pairing, mode, await pairing.both())
    others = await another_pair(pairing)
    refusing.refuse()
    await other.closed()
    answer = await asked
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    await failed_once(pairing, others, failures.NO_WORKER)


async def test_a_kept_connection_that_did_not_read_the_request_is_replaced_for_its_side_only(
    pairing: Pairing,
) -> None:
    asked = asking(pairing.bench)
    first, second = await pairing.both()
    pairing.prefill.reset_after_next()
    first.answer()
    second.answer()
    await asked
    asked = asking(pairing.bench)
    first, second = await pairing.both()
    first.answer()
    second.answer(ANSWER)
    assert (await asked).body == ANSWER
    assert (pairing.prefill.connections, pairing.decode.connections) == (2, 1)
    assert (pairing.prefill.requests, pairing.decode.requests) == (2, 2)


# The client.


@pytest.mark.parametrize(
    "phase", ["at both", "after the prefill", "after the head", "in a stream", "in an early stream"]
)
async def test_a_client_that_closes_ends_the_request_at_both(pairing: Pairing, phase: str) -> None:
    bench = pairing.bench
    host, port = bench.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, port)
    body = b'{"model":"m","stream":true}'
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
    writer.write(head + body)
    first, second = await pairing.both()
    if phase in ("after the prefill", "in a stream"):
        first.answer()
        await left(pairing, pairing.prefill)
    if phase in ("after the head", "in a stream", "in an early stream"):
        await begun(second)
    if phase in ("in a stream", "in an early stream"):
        second.write(EVENTS.split(b"\n\n")[0] + b"\n\n")
        async with asyncio.timeout(SECONDS):
            await reader.readuntil(b"}}]}\n\n")
    writer.close()
    await second.closed()
    if phase not in ("after the prefill", "in a stream"):
        await first.closed()
    await nothing_in_flight(bench, pairing.prefill, pairing.decode)
    assert bench.count("requests_total", error_type="cancelled") == 1
    assert bench.count("failures_total") == 0


# Refusals.

PAIRED_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"sampling_params": [{"n": 1}, {"n": 2}]}, "sampling_params.n"),
    ({"routed_dp_rank": 0}, "routed_dp_rank"),
    ({"data_parallel_rank": 0}, "data_parallel_rank"),
    ({"background": True}, "background"),
]
ALWAYS: list[tuple[dict[str, Any], str]] = [
    ({"bootstrap_host": "h"}, "bootstrap_host"),
    ({"bootstrap_port": 1}, "bootstrap_port"),
    ({"bootstrap_room": 0}, "bootstrap_room"),
    ({"bootstrap_pair_key": ""}, "bootstrap_pair_key"),
    ({"disagg_prefill_dp_rank": 0}, "disagg_prefill_dp_rank"),
    ({"decode_tp_size": 1}, "decode_tp_size"),
]


@pytest.mark.parametrize(("content", "member"), PAIRED_ONLY + ALWAYS)
async def test_a_member_that_pairs_do_not_support_is_refused(
    pairing: Pairing, content: dict[str, Any], member: str
) -> None:
    answer = await asking(pairing.bench, **content)
    assert answer.status == 400
    assert answer.error["param"] == member
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"].startswith(f"{member} must ")
    assert (pairing.prefill.connections, pairing.decode.connections) == (0, 0)
    reason = failures.REFUSED.reason
    assert pairing.bench.count("failures_total", reason=reason) == 1
    assert pairing.bench.count("requests_total", model="m", error_type="validation") == 1


@pytest.mark.parametrize(("content", "member"), ALWAYS)
@pytest.mark.parametrize("path", [CHAT, "/generate", "/v1/embeddings", "/tokenize"])
async def test_a_member_that_selects_engines_is_refused_in_every_mode(
    pairing: Pairing, content: dict[str, Any], member: str, path: str
) -> None:
    bench = pairing.bench
    bench.forget()
    await bench.worker(fine)
    answer = await asking(bench, path, **content)
    assert (answer.status, answer.error["param"]) == (400, member)
    assert (await asking(bench, path, **dict.fromkeys(content))).status == 200


@pytest.mark.parametrize(("content", "_"), PAIRED_ONLY)
async def test_one_worker_for_both_phases_supports_all_other_members(
    pairing: Pairing, content: dict[str, Any], _: str
) -> None:
    await pairing.bench.worker(fine)
    assert (await asking(pairing.bench, **content)).status == 200


async def test_a_form_is_refused_where_a_pair_answers(pairing: Pairing) -> None:
    form = aiohttp.FormData({"model": "m"}, default_to_multipart=True)
    async with pairing.bench.session.post(pairing.bench.url + CHAT, data=form) as answer:
        assert answer.status == 400
    assert pairing.prefill.connections == 0


@pytest.mark.parametrize("modes", [(AGGREGATED,), (PREFILL, DECODE)])
@pytest.mark.parametrize("member", ["x", "stream_options", "n", "background"])
async def test_a_body_of_any_depth_is_sent_or_refused(
    pairing: Pairing, modes: tuple[str, ...], member: str
) -> None:
    """Later steps have less of the stack left than the first one."""
    bench = pairing.bench
    bench.forget()
    for mode in modes:
        bench.register(nobody(), mode=mode, bootstrap="h:1" if mode == PREFILL else None)
    statuses = set()
    for depth in range(800, 1000):
        value = '{"n":' * depth + "1" + "}" * depth
        text = '{"model":"m","stream":true,"%s":%s}' % (member, value)  # noqa: UP031  # braces
        async with bench.session.post(bench.url + CHAT, data=text) as answer:
            statuses.add(answer.status)
    assert statuses <= {400, 503}


# Routes and modes.


@pytest.mark.parametrize("path", ALONE)
async def test_a_route_without_a_forward_pass_is_answered_by_the_decode_worker_alone(
    pairing: Pairing, path: str
) -> None:
    asked = asking(pairing.bench, path, n=2, x=1)
    exchange = await pairing.decode.next()
    assert exchange.body == {"model": "m", "n": 2, "x": 1}
    exchange.answer(ANSWER)
    assert (await asked).body == ANSWER
    assert pairing.prefill.connections == 0


@pytest.mark.parametrize("path", NONE)
async def test_a_route_that_pairs_do_not_have_is_404_with_the_reason(
    pairing: Pairing, path: str
) -> None:
    answer = await asking(pairing.bench, path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert "prefill and decode workers" in answer.error["message"]
    assert (pairing.prefill.connections, pairing.decode.connections) == (0, 0)
    await pairing.bench.worker(fine)
    assert (await asking(pairing.bench, path)).status == 200


async def test_a_model_with_a_worker_for_both_phases_is_served_by_it_alone(
    pairing: Pairing,
) -> None:
    await pairing.bench.worker(fine)
    assert [(await asking(pairing.bench)).status for _ in range(4)] == [200] * 4
    assert (pairing.prefill.connections, pairing.decode.connections) == (0, 0)


async def test_each_of_several_workers_of_a_mode_has_its_turn(pairing: Pairing) -> None:
    more = [await pairing.side(DECODE), await pairing.side(DECODE)]
    for _ in range(6):
        asked = asking(pairing.bench)
        (await pairing.prefill.next()).answer()
        for side in (pairing.decode, *more):
            if side.waiting:
                (await side.next()).answer(ANSWER)
        assert (await asked).status == 200
    assert [side.requests for side in (pairing.decode, *more)] == [2, 2, 2]
    assert pairing.prefill.requests == 6
