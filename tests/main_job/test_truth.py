"""After a known load every counter and `_count` of both pages equals what was sent.

All counters are compared: an increase that is not expected fails the row, and a late increase,
between two rows, fails the next row. expectations.py has the expected increases.
"""

from __future__ import annotations

import contextlib
import http.client
import urllib.parse
from collections.abc import Mapping

import pytest
from counting import GAUGES, LATE_GAUGES, Got, Request, together
from expectations import of_aborted_run, of_answered, of_vanished
from truth import MODEL, USAGE, Truth

from stack import Stack, eventually

pytestmark = pytest.mark.engine

CHAT, TEXT, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
TOKENS = 8
# Longer than any test waits, and within the context of the model.
LONG = 1800
INVALID = ("InvalidRequest", "request.invalid")
# SGLang checks every 4 s whether the client of a request without an answer is connected.
ABORTED = "sglang:num_aborted_requests_total"
REFUSED = ("InvalidRequest", "request.invalid_argument")


def chat(**options: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "count me"}]
    return {"model": MODEL, "messages": messages, **_options(options)}


def text(**options: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": "count me", **_options(options)}


def without_model() -> dict[str, object]:
    return {name: value for name, value in chat().items() if name != "model"}


def generate(**options: object) -> dict[str, object]:
    sampling = {"max_new_tokens": TOKENS, "ignore_eos": True}
    return {"text": "count me", "sampling_params": sampling, **options}


def _options(options: Mapping[str, object]) -> Mapping[str, object]:
    return {"max_tokens": TOKENS, "ignore_eos": True, **options}


def refused(path: str, body: object, *, status: int = 400) -> Request:
    """Return a request that the engine refuses: an error, although the worker did its work."""
    return Request(
        path=path, body=body, status=status, error="validation", failure=REFUSED, choices=0
    )


def unread(body: object) -> Request:
    return Request(
        path=CHAT,
        body=body,
        status=400,
        error="validation",
        failure=INVALID,
        known=False,
        read=False,
        sent=False,
    )


def unknown(path: str, body: object) -> Request:
    return Request(
        path=path,
        body=body,
        status=404,
        error="not_found",
        failure=("NotFound", "request.not_found"),
        known=False,
        sent=False,
    )


THREE = ["one", "two words", "three whole words"]
ANSWERED = {
    "chat": Request(path=CHAT, body=chat()),
    "chat, streamed": Request(path=CHAT, body=chat(stream=True)),
    "chat, streamed with its usage": Request(
        path=CHAT, body=chat(stream=True, stream_options=USAGE)
    ),
    "text": Request(path=TEXT, body=text()),
    "text, streamed": Request(path=TEXT, body=text(stream=True)),
    "text, streamed with its usage": Request(
        path=TEXT, body=text(stream=True, stream_options=USAGE)
    ),
    "generate": Request(path=GENERATE, body=generate()),
    "generate, streamed": Request(path=GENERATE, body=generate(stream=True)),
    "messages": Request(path="/v1/messages", body=chat()),
    "messages, streamed": Request(path="/v1/messages", body=chat(stream=True)),
    "responses": Request(
        path="/v1/responses", body={"model": MODEL, "input": "hi", "max_output_tokens": TOKENS}
    ),
    "responses, streamed": Request(
        path="/v1/responses",
        body={"model": MODEL, "input": "hi", "max_output_tokens": TOKENS, "stream": True},
    ),
    "model not named": Request(path=CHAT, body=without_model()),
    "three prompts": Request(path=TEXT, body=text(prompt=THREE), choices=3),
    "three prompts, streamed": Request(path=TEXT, body=text(prompt=THREE, stream=True), choices=3),
    "two prompts to generate": Request(path=GENERATE, body=generate(text=THREE[:2]), choices=2),
    "two prompts to generate, streamed": Request(
        path=GENERATE, body=generate(text=THREE[:2], stream=True), choices=2
    ),
    "two answers": Request(path=TEXT, body=text(n=2), choices=2, n=2),
    "two answers, streamed": Request(path=TEXT, body=text(n=2, stream=True), choices=2, n=2),
    "two answers of a chat": Request(path=CHAT, body=chat(n=2), choices=2, n=2),
    "two answers of a chat, streamed": Request(
        path=CHAT, body=chat(n=2, stream=True), choices=2, n=2
    ),
    "two answers to two prompts, streamed": Request(
        path=TEXT, body=text(prompt=THREE[:2], n=2, stream=True), choices=4, n=2
    ),
    "one token": Request(path=TEXT, body=text(max_tokens=1)),
    "one token, streamed": Request(path=TEXT, body=text(max_tokens=1, stream=True)),
    # SGLang accepts it for chats, and refuses it for completions.
    "no token of a chat": Request(path=CHAT, body=chat(max_tokens=0)),
    "no token of a chat, streamed": Request(path=CHAT, body=chat(max_tokens=0, stream=True)),
    "no token of a text": refused(TEXT, text(max_tokens=0)),
    "embeddings of a model that has none": refused(
        "/v1/embeddings", {"model": MODEL, "input": "count me"}
    ),
    "a parameter that is out of range": refused(CHAT, chat(temperature=-1)),
    "a parameter that is out of range, streamed": refused(TEXT, text(temperature=-1, stream=True)),
    "a prompt that is too long": refused(TEXT, text(prompt="a b " * 2000, stream=True)),
    "no messages": refused(CHAT, {"model": MODEL}),
    "unknown model": unknown(CHAT, {**chat(), "model": "unregistered"}),
    "unknown model, streamed": unknown(TEXT, {**text(stream=True), "model": "unregistered"}),
    "no JSON": unread(b'{"model": '),
    "no object": unread(b"[1]"),
    "no body": unread(b""),
}
# The beginning of the last event.
LAST = {
    "chat, streamed": (b"data: [DONE]",),
    "text, streamed with its usage": (b"data: [DONE]",),
    "generate, streamed": (b"data: [DONE]",),
    "messages, streamed": (b"event: message_stop",),
    "responses, streamed": (b"event: response.completed", b"event: response.incomplete"),
}


@pytest.fixture(scope="module")
def usages(stack: Stack) -> dict[str, Got | None]:
    """Return the usage events that the frontend removes, by the name of the row."""
    truth = Truth(stack)
    return {name: truth.usage(truth.of(request)) for name, request in ANSWERED.items()}


@pytest.fixture(scope="module")
def all_rows(stack: Stack) -> Truth:
    return Truth(stack)


@pytest.fixture
def truth(all_rows: Truth, usages: object) -> Truth:
    all_rows.ready()
    return all_rows


@pytest.mark.parametrize("name", ANSWERED)
def test_a_request_with_an_answer(
    truth: Truth, usages: Mapping[str, Got | None], name: str
) -> None:
    request = truth.of(ANSWERED[name])
    got = truth.client(request).read()
    assert got.status == request.status, got.body
    truth.expect(of_answered(request, got, usages[name]))


@pytest.mark.parametrize("name", LAST)
def test_clients_that_close_a_stream_at_its_last_event_have_not_vanished(
    truth: Truth, usages: Mapping[str, Got | None], name: str
) -> None:
    """OpenAI's own client does so before the HTTP answer ends; either may be first."""
    request, adds = truth.of(ANSWERED[name]), []
    for _ in range(5):
        client = truth.client(request)
        client.read_until(LAST[name])
        client.close()
        adds.append(of_answered(request, client.got, usages[name]))
    truth.expect(together(adds))


def test_many_at_once(truth: Truth, usages: Mapping[str, Got | None]) -> None:
    """More requests than the engine runs at once: the queue empties, and each counts once."""
    names = ["chat", "chat, streamed", "text, streamed", "three prompts, streamed"] * 5
    clients = [(name, truth.client(truth.of(ANSWERED[name]))) for name in names]
    truth.expect(
        together(
            of_answered(truth.of(ANSWERED[name]), client.read(), usages[name])
            for name, client in clients
        )
    )


def test_a_body_that_is_too_large(truth: Truth) -> None:
    """The header alone decides: the body is not read."""
    request = unread(b"").but(status=413, failure=("PayloadTooLarge", "request.payload_too_large"))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n"
    with truth.raw(head.encode()) as connection:
        assert connection.recv(12) == b"HTTP/1.1 413"
    truth.expect(of_answered(request, Got(413, b""), None))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/nothing", 404), ("GET", CHAT, 405), ("GET", "/v1/models", 200)],
)
def test_what_is_no_inference_request_is_counted_nowhere(
    truth: Truth, method: str, path: str, status: int
) -> None:
    address = urllib.parse.urlsplit(truth.stack.frontend_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, b"" if method == "GET" else b"{}")
        assert connection.getresponse().status == status
    truth.expect({})


# Clients that close their connection, by the state of their request.


def cancelled(path: str, body: object, truth: Truth, **changes: object) -> Request:
    return truth.of(Request(path=path, body=body, status=0, error="cancelled")).but(**changes)


def test_a_client_that_goes_away_while_it_sends(truth: Truth) -> None:
    request = cancelled(TEXT, b"", truth, known=False, read=False, sent=False)
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with truth.raw(head.encode() + b'{"mo'):
        truth.wait("its body is read", stage_requests=1)
    truth.expect(of_vanished(request, Got(0, b"")))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_before_the_first_token(truth: Truth, stream: bool) -> None:
    """The engine is suspended meanwhile. Its own families may count the request as one that ran:
    the resumed engine may begin it before it aborts it.
    """
    request = cancelled(TEXT, text(max_tokens=LONG, stream=stream), truth)
    with truth.frozen():
        client = truth.client(request)
        truth.wait(
            "it is at the worker",
            dynamo_frontend_active_requests=1,
            dynamo_frontend_queued_requests=1,
            stage_requests=1,
            dynamo_request_plane_inflight_requests=1,
            dynamo_component_inflight_requests=1,
        )
        truth.wait_for("sglang:http_requests_total", 1)
        client.close()
        truth.wait("it is gone", dynamo_component_inflight_requests=0)
        if not stream:
            truth.wait_for(ABORTED, 1)
    rose = truth.expect(
        together([of_vanished(request, Got(0, b"")), of_aborted_run(certain=False)])
    )
    assert "dynamo_frontend_time_to_first_token_seconds_count" not in rose


@pytest.mark.parametrize("path", [CHAT, TEXT, GENERATE, "/v1/messages"])
def test_a_client_that_goes_away_in_the_middle(truth: Truth, path: str) -> None:
    sampling = {"max_new_tokens": LONG, "ignore_eos": True}
    body = {
        CHAT: chat(stream=True, max_tokens=LONG),
        TEXT: text(stream=True, max_tokens=LONG),
        GENERATE: generate(stream=True, sampling_params=sampling),
        "/v1/messages": chat(stream=True, max_tokens=LONG),
    }[path]
    request = cancelled(path, body, truth)
    client = truth.client(request)
    client.read_events(5)
    client.close()
    rose = truth.expect(together([of_vanished(request, client.got), of_aborted_run()]))
    events = sum(
        rose[f"dynamo_frontend_{name}_seconds_count"]
        for name in ("time_to_first_token", "inter_token_latency")
    )
    assert 5 <= events <= rose["sglang:generation_tokens_total"] < LONG


def test_a_client_that_goes_away_while_its_answer_is_made(truth: Truth) -> None:
    request = cancelled(CHAT, chat(max_tokens=LONG), truth)
    client = truth.client(request)
    truth.wait("it runs", running_requests=1)
    with truth.frozen():
        client.close()
        truth.wait_for(ABORTED, 1)
    aborted = of_aborted_run(stream=False)
    rose = truth.expect(together([of_vanished(request, Got(0, b"")), aborted]))
    assert rose["sglang:generation_tokens_total"] < LONG


def test_clients_that_go_away_while_they_are_queued(truth: Truth) -> None:
    """Eight requests run, the limit; two more wait, and their clients go away. SGLang counts these
    as aborted, and not as requests.
    """
    long = cancelled(TEXT, text(prompt="hi", stream=True, max_tokens=1000), truth)
    queued = [cancelled(TEXT, text(max_tokens=4, stream=stream), truth) for stream in (True, False)]
    running = [truth.client(long) for _ in range(8)]
    for client in running:
        client.read_events(1)
    waiting = [truth.client(request) for request in queued]
    truth.wait(
        "two wait",
        dynamometer_engine_running_requests=8,
        dynamometer_engine_queued_requests=2,
        dynamo_frontend_active_requests=10,
        dynamo_frontend_queued_requests=2,
        dynamo_component_inflight_requests=10,
    )
    with truth.frozen():
        for client in waiting:
            client.close()
        truth.wait_for(ABORTED, 2)
    for client in running:
        client.close()
    truth.expect(
        together(
            [
                *(of_vanished(long, client.got) for client in running),
                *(of_vanished(request, Got(0, b"")) for request in queued),
                *(of_aborted_run() for _ in running),
            ]
        )
    )


def test_every_checked_gauge_is_on_the_page(truth: Truth) -> None:
    """A gauge whose name has changed would otherwise be read as 0."""
    assert truth.now().gauges == dict.fromkeys(GAUGES, 0)
    eventually(
        lambda: truth.now().late_gauges == dict.fromkeys(LATE_GAUGES, 0),
        within=15,
        what=f"{LATE_GAUGES} are 0",
    )
