"""Requests through frontend and worker to the real engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from stack import Stack, Worker, http

pytestmark = pytest.mark.engine
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def worker(stack: Stack) -> Worker:
    assert stack.worker is not None
    return stack.worker


def chat(stack: Stack, **options: object) -> dict[str, object]:
    return {
        "model": str(stack.model),
        "messages": [{"role": "user", "content": "Explain tennis"}],
        "temperature": 0,
        "max_tokens": 12,
        "ignore_eos": True,
        **options,
    }


def without_identity(body: bytes) -> bytes:
    """Return an answer without the members that differ between equal requests."""
    return re.sub(rb'"id":"[^"]*"|"created":\d+', b"", body)


def test_the_commands_of_the_readme_work_word_for_word(stack: Stack, worker: Worker) -> None:
    text = README.read_text(encoding="utf-8")
    commands = re.findall(r"^curl .*$", text, re.MULTILINE)
    assert any("chat/completions" in command for command in commands)
    assert any('grep "^sglang:"' in command for command in commands)
    for command in commands:
        line = command.replace("<model>", str(stack.model))
        line = line.replace("http://localhost:8000", stack.frontend_url)
        line = line.replace("localhost:8081", worker.system_url)
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, line
        assert done.stdout.strip(), line
        if "chat/completions" in line:
            assert (
                '"completion_tokens":100' in done.stdout or '"finish_reason":"stop"' in done.stdout
            )


def events(body: bytes) -> tuple[list[bytes], str]:
    """Return the events of a stream without text, and the whole text.

    The number of tokens in an event depends on the timing of the engine.
    """
    text = re.compile(rb'"(?:content|text)":"((?:[^"\\\\]|\\\\.)*)"')
    found = b"".join(text.findall(body)).decode()
    return sorted(set(text.sub(b"", without_identity(body)).split(b"\n\n"))), found


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_answer_is_the_engines_byte_for_byte(stack: Stack, worker: Worker, path: str) -> None:
    body = chat(stack) | {"prompt": "Explain tennis"}
    direct, through = http(worker.engine_url + path, body), http(stack.frontend_url + path, body)
    assert through.status == direct.status == 200
    assert through.headers["Content-Type"] == direct.headers["content-type"]
    assert without_identity(through.body) == without_identity(direct.body)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_streams_events_are_the_engines_byte_for_byte(
    stack: Stack, worker: Worker, path: str
) -> None:
    body = chat(stack, stream=True) | {"prompt": "Explain tennis"}
    direct, through = http(worker.engine_url + path, body), http(stack.frontend_url + path, body)
    assert through.headers["Content-Type"] == direct.headers["content-type"]
    assert events(through.body) == events(direct.body)


def test_the_engines_native_route_streams_too(stack: Stack) -> None:
    options = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    for stream in (False, True):
        body = {"text": "Explain tennis", "sampling_params": options, "stream": stream}
        answer = http(f"{stack.frontend_url}/generate", body)
        assert answer.status == 200
        assert b'"completion_tokens":12' in answer.body


def test_a_stream_has_the_usage_where_the_client_requested_it(stack: Stack, worker: Worker) -> None:
    body = chat(stack, stream=True, stream_options={"include_usage": True})
    direct = http(f"{worker.engine_url}/v1/chat/completions", body)
    through = http(f"{stack.frontend_url}/v1/chat/completions", body)
    assert b'"completion_tokens":12' in through.body
    assert events(through.body) == events(direct.body)


@pytest.mark.parametrize(
    "path",
    [
        "/flush_cache",
        "/abort_request",
        "/start_profile",
        "/update_weights_from_disk",
        "/load_lora_adapter",
        "/release_memory_occupation",
        "/server_info",
        "/get_server_info",
        "/v1/chat/completions/../../flush_cache",
        "/v1/../flush_cache",
        "//flush_cache",
        "/%66lush_cache",
    ],
)
def test_administrative_routes_are_not_reachable(stack: Stack, worker: Worker, path: str) -> None:
    for url in (stack.frontend_url, worker.request_url):
        assert http(url + path).status == 404
        answer = http(url + path, {})
        assert answer.status == 404
        assert b'"error"' in answer.body


def test_the_models_are_the_engines_own(stack: Stack, worker: Worker) -> None:
    direct = http(f"{worker.engine_url}/v1/models").json()["data"]
    listed = http(f"{stack.frontend_url}/v1/models").json()["data"]
    assert isinstance(direct, list)
    assert isinstance(listed, list)
    for card in (*direct, *listed):
        card.pop("created")
    assert listed == direct
    one = http(f"{stack.frontend_url}/v1/models/{stack.model}").json()
    assert one["id"] == str(stack.model)
    assert http(f"{stack.frontend_url}/v1/models/nope").status == 404


def test_embeddings_are_refused_with_the_engines_own_error(stack: Stack) -> None:
    answer = http(f"{stack.frontend_url}/v1/embeddings", {"model": str(stack.model), "input": "x"})
    assert answer.status == 400
    assert b"does not appear to be an embedding model" in answer.body


def test_the_workers_own_address_serves_without_a_frontend(stack: Stack, worker: Worker) -> None:
    answer = http(f"{worker.request_url}/v1/chat/completions", chat(stack))
    assert answer.status == 200
    assert answer.json()["object"] == "chat.completion"
    assert http(f"{worker.request_url}/v1/models").status == 200


def test_health_and_live_have_the_form_of_nvidia_dynamo(stack: Stack, worker: Worker) -> None:
    health = http(f"{worker.system_url}/health")
    assert health.status == 200
    body = health.json()
    assert body["status"] == "ready"
    assert body["endpoints"] == {"generate": "ready"}
    assert set(body["uptime"]) == {"secs", "nanos"}  # type: ignore[call-overload]
    assert http(f"{worker.system_url}/live").status == 200
    assert http(f"{worker.system_url}/health", {}).status == 405
    frontend = http(f"{stack.frontend_url}/health").json()
    assert frontend["status"] == "healthy"
    assert frontend["endpoints"] == ["dyn://dynamo.backend.generate"]
    assert http(f"{stack.frontend_url}/live").json() == {
        "status": "live",
        "message": "Service is live",
    }
