"""The counts on the pages equal the requests that were sent."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from stack import Stack, Worker, eventually
from stack import http as fetch

pytestmark = pytest.mark.engine
REQUESTS, TOKENS = 4, 20


@pytest.fixture
def worker(stack: Stack) -> Worker:
    assert stack.worker is not None
    return stack.worker


def reader(url: str) -> Callable[..., float]:
    """Return a function that sums the series of a name with the given labels."""

    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in parse(fetch(f"{url}/metrics").body.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    before: dict[object, float] = {}

    def since(name: str, **labels: str) -> float:
        key = (name, *sorted(labels.items()))
        return total(name, **labels) - before.get(key, 0.0)

    def remember(name: str, **labels: str) -> None:
        before[(name, *sorted(labels.items()))] = total(name, **labels)

    since.remember = remember  # type: ignore[attr-defined]
    return since


def body(stack: Stack, **options: object) -> dict[str, object]:
    return {
        "model": str(stack.model),
        "messages": [{"role": "user", "content": "count me"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        **options,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_n_requests_of_m_tokens_are_n_times_m(stack: Stack, worker: Worker, stream: bool) -> None:
    frontend, backend = reader(stack.frontend_url), reader(worker.system_url)
    model = {"model": str(stack.model)}
    kind = {"request_type": "stream" if stream else "unary", "endpoint": "chat_completions"}
    watched = {
        "dynamo_frontend_output_tokens_total": (REQUESTS * TOKENS, model),
        "dynamo_frontend_output_sequence_tokens_sum": (REQUESTS * TOKENS, model),
        "dynamo_frontend_output_sequence_tokens_count": (REQUESTS, model),
        "dynamo_frontend_input_sequence_tokens_count": (REQUESTS, model),
        "dynamo_frontend_request_duration_seconds_count": (REQUESTS, model),
        "dynamo_frontend_time_to_first_token_seconds_count": (REQUESTS if stream else 0, model),
        "dynamo_frontend_requests_started_total": (REQUESTS, model | kind),
        "dynamo_frontend_requests_total": (REQUESTS, model | kind | {"status": "success"}),
    }
    for name, (_, labels) in watched.items():
        frontend.remember(name, **labels)  # type: ignore[attr-defined]
    backend.remember("dynamo_component_requests_total")  # type: ignore[attr-defined]
    backend.remember("dynamo_component_request_duration_seconds_count")  # type: ignore[attr-defined]
    frontend.remember("dynamo_frontend_input_sequence_tokens_sum")  # type: ignore[attr-defined]
    for _ in range(REQUESTS):
        answer = fetch(f"{stack.frontend_url}/v1/chat/completions", body(stack, stream=stream))
        assert answer.status == 200
        assert not stream or b'"usage":{' not in answer.body
    for name, (expected, labels) in watched.items():
        assert frontend(name, **labels) == expected, name
    one = fetch(f"{stack.frontend_url}/v1/chat/completions", body(stack)).json()
    prompt = one["usage"]["prompt_tokens"]  # type: ignore[index]
    assert frontend("dynamo_frontend_input_sequence_tokens_sum") == (REQUESTS + 1) * prompt
    assert backend("dynamo_component_requests_total") == REQUESTS + 1
    assert backend("dynamo_component_request_duration_seconds_count") == REQUESTS + 1
    assert frontend("dynamo_frontend_active_requests") == 0
    assert backend("dynamo_component_inflight_requests") == 0


def test_bytes_are_those_of_the_bodies(stack: Stack, worker: Worker) -> None:
    backend = reader(worker.system_url)
    backend.remember("dynamo_component_request_bytes_total")  # type: ignore[attr-defined]
    backend.remember("dynamo_component_response_bytes_total")  # type: ignore[attr-defined]
    sent = json.dumps(body(stack)).encode()
    answer = fetch(f"{stack.frontend_url}/v1/chat/completions", sent)
    assert backend("dynamo_component_request_bytes_total") == len(sent)
    assert backend("dynamo_component_response_bytes_total") == len(answer.body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_is_counted_and_frees_the_engine(
    stack: Stack, worker: Worker, stream: bool
) -> None:
    frontend, backend = reader(stack.frontend_url), reader(worker.system_url)
    cancelled = {"error_type": "cancelled", "request_type": "stream" if stream else "unary"}
    frontend.remember("dynamo_frontend_requests_total", **cancelled)  # type: ignore[attr-defined]
    frontend.remember("dynamo_frontend_requests_total", status="success")  # type: ignore[attr-defined]
    frontend.remember("dynamo_frontend_disconnected_clients")  # type: ignore[attr-defined]
    frontend.remember("dynamo_frontend_model_cancellation_total")  # type: ignore[attr-defined]
    frontend.remember("dynamo_frontend_output_tokens_total")  # type: ignore[attr-defined]
    backend.remember("dynamo_component_cancellation_total")  # type: ignore[attr-defined]
    backend.remember("sglang:num_aborted_requests_total")  # type: ignore[attr-defined]
    address = urllib.parse.urlsplit(stack.frontend_url)
    client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    asked = json.dumps(body(stack, stream=stream, max_tokens=1800))
    client.request("POST", "/v1/chat/completions", asked, {"Content-Type": "application/json"})
    if stream:
        client.getresponse().read(300)
    else:
        eventually(
            lambda: reader(worker.system_url)("sglang:num_running_reqs") == 1,
            within=15,
            what="the engine runs the request",
        )
    client.close()
    eventually(
        lambda: frontend("dynamo_frontend_requests_total", **cancelled) == 1,
        within=5,
        what="the frontend counts one cancelled request",
    )
    eventually(
        lambda: backend("sglang:num_aborted_requests_total") == 1,
        within=15,
        what="the engine aborts it",
    )
    assert frontend("dynamo_frontend_requests_total", status="success") == 0
    assert frontend("dynamo_frontend_disconnected_clients") == 1
    assert frontend("dynamo_frontend_model_cancellation_total") == 1
    assert backend("dynamo_component_cancellation_total") == 1
    assert frontend("dynamo_frontend_output_tokens_total") < 1800
    assert frontend("dynamo_frontend_active_requests") == 0
    assert backend("dynamo_component_inflight_requests") == 0
    eventually(
        lambda: reader(worker.system_url)("sglang:num_running_reqs") == 0,
        within=15,
        what="the engine is free",
    )


def test_names_that_clients_invent_make_no_series(stack: Stack) -> None:
    def count() -> int:
        page = fetch(f"{stack.frontend_url}/metrics").body
        return sum(not line.startswith(b"#") for line in page.splitlines())

    frontend = reader(stack.frontend_url)
    unknown = {"model": "unknown_model", "error_type": "not_found"}
    frontend.remember("dynamo_frontend_requests_total", **unknown)  # type: ignore[attr-defined]
    before = count()
    for number in range(50):
        answer = fetch(f"{stack.frontend_url}/v1/chat/completions", {"model": f"invented-{number}"})
        assert answer.status == 404
        fetch(f"{stack.frontend_url}/v1/invented/{number}", {})
    assert count() == before
    assert frontend("dynamo_frontend_requests_total", **unknown) == 50


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b'{"model": "x"', "not valid JSON"),
        (b'{"model": "x"} trailing', "trailing"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"model": 7}', "model must be a string"),
        (b'{"x":' + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_body_that_is_no_request_is_400_and_counted(
    stack: Stack, content: bytes, says: str
) -> None:
    frontend = reader(stack.frontend_url)
    refused = {"status": "error", "error_type": "validation"}
    frontend.remember("dynamo_frontend_requests_total", **refused)  # type: ignore[attr-defined]
    answer = fetch(f"{stack.frontend_url}/v1/chat/completions", content)
    assert answer.status == 400
    error = answer.json()["error"]
    assert says in error["message"]  # type: ignore[index]
    assert error["type"] == "invalid_request_error"  # type: ignore[index]
    assert frontend("dynamo_frontend_requests_total", **refused) == 1
