"""Errors of an engine that is full, dies, or is missing: each is counted once.

test_truth.py has the counts of other requests; here the engine runs one request, and one waits.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from counting import OURS, Client, Counts, Range, Request, at_least, exactly, unexpected
from expectations import FRONTEND, WORKER, of_answered, of_first_bytes, of_frontend

from stack import Stack, Worker, eventually, http

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MODEL = "crowded"
CHAT, TEXT, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
EXHAUSTED = ("CapacityExhausted", "capacity.exhausted")
# Lasts longer than a test, also on a fast machine.
CONTEXT, TOKENS = 8192, 8000
LONG = {"model": MODEL, "prompt": "hi", "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
CHATS = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXTS = {"model": MODEL, "prompt": "hi", "max_tokens": 2}


@dataclass
class Crowd:
    """A frontend, a worker whose engine is full, and the two clients that fill it."""

    frontend: str
    worker: Worker
    running: Client
    waiting: Client


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    directory = tmp_path_factory.mktemp("crowd")
    model = Path(shutil.copytree(tiny_model, directory / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    return Stack(directory, model, directory / "discovery")


@pytest.fixture(scope="module")
def frontend(place: Stack) -> Iterator[str]:
    with place.run_frontend() as (_, url):
        yield url


@pytest.fixture(scope="module")
def worker(place: Stack, frontend: str) -> Iterator[Worker]:
    flags = ("--model", str(place.model), "--served-model-name", MODEL, "--enable-metrics")
    limits = ("--max-running-requests", "1", "--max-queued-requests", "1", "--restart-limit", "0")
    with place.run_worker(*flags, *limits) as made:
        yield made.wait_until_ready()


@pytest.fixture
def crowd(worker: Worker, frontend: str) -> Iterator[Crowd]:
    eventually(
        lambda: not any(Counts.of(frontend, worker.system_url).gauges.values()),
        within=15,
        what="the requests of the crowd before have ended",
    )
    request = Request(path=TEXT, body=LONG)
    running = Client(frontend, request)
    running.read_events(1)
    waiting = Client(frontend, request)
    with contextlib.closing(waiting), contextlib.closing(running):
        eventually(
            lambda: Counts.of(worker.system_url).gauges["sglang:num_queue_reqs"] == 1,
            within=15,
            what="one waits",
        )
        yield Crowd(frontend, worker, running, waiting)
        running.close()
        if not waiting.got.status:
            waiting.read_events(
                1
            )  # the request runs: SGLang detects at once that its client has gone


def expect(before: Counts, adds: Mapping[str, Range], *urls: str) -> None:
    """Wait until the pages have increased by `adds`; check those families of the engine only."""
    left: Mapping[str, str] = {}

    def equal() -> bool:
        nonlocal left
        rose = Counts.of(*urls).since(before)
        ours = {name: by for name, by in rose.items() if name.startswith(OURS)}
        left = unexpected(ours, {k: v for k, v in adds.items() if k.startswith(OURS)})
        return not left

    with contextlib.suppress(AssertionError):
        eventually(equal, within=10, what="the pages are as expected")
    assert not left


def no_worker(body: Mapping[str, object], *, known: bool) -> Request:
    return Request(
        path=TEXT,
        body=dict(body),
        status=503,
        error="unavailable",
        failure=("Unavailable", "backend.worker_unavailable"),
        known=known,
        sent=False,
    )


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_worker(frontend: str, stream: bool) -> None:
    request, before = no_worker(TEXTS | {"stream": stream}, known=False), Counts.of(frontend)
    got = Client(frontend, request).read()
    assert got.status == request.status
    expect(before, of_answered(request, got, None), frontend)


# In a stream SGLang reports the error after the status 200.
REFUSED = {
    "text": (503, TEXT, TEXTS),
    "text, streamed": (200, TEXT, TEXTS | {"stream": True}),
    "chat": (503, CHAT, CHATS),
    "chat, streamed": (200, CHAT, CHATS | {"stream": True}),
    "generate": (503, GENERATE, {"text": "hi"}),
    "generate, streamed": (200, GENERATE, {"text": "hi", "stream": True}),
    "messages, streamed": (200, "/v1/messages", CHATS | {"stream": True}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_engine_that_is_full(crowd: Crowd, name: str) -> None:
    status, path, body = REFUSED[name]
    request = Request(
        path=path, body=body, status=status, error="overload", failure=EXHAUSTED, choices=0
    )
    pages = crowd.frontend, crowd.worker.system_url
    before = Counts.of(*pages)
    got = Client(crowd.frontend, request).read()
    assert got.status == status, got.body
    adds = of_answered(request, got, None)
    if status == 503:  # the worker does not read the events of a stream
        adds[WORKER + "errors_total error_type=generate"] = exactly(1)
    if request.hides_usage:
        adds[WORKER + "response_bytes_total"] = at_least(len(got.body))
    expect(before, adds, *pages)


def test_an_engine_that_dies(crowd: Crowd) -> None:
    """The running stream breaks off, the waiting request gets 502, and then no worker is left."""
    before, kind = Counts.of(crowd.frontend), Request(path=TEXT, body=LONG, error="unavailable")
    crowd.worker.engine.kill()
    crowd.running.read_until((b'data: {"error"',))
    assert crowd.waiting.read().status == 502
    seen = crowd.running.got.content_events()
    adds: dict[str, Range] = {}
    for reason in ("backend.stream_incomplete", "backend.engine_shutdown"):
        request = kind.but(failure=("Unavailable", reason))
        for name, amount in (of_frontend(request) | of_first_bytes()).items():
            adds[name] = adds.get(name, exactly(0)) + amount
    adds = {name: amount for name, amount in adds.items() if "work_handler" not in name}
    # The request started before.
    del adds[FRONTEND + "requests_started_total endpoint=completions request_type=stream"]
    adds[FRONTEND + "time_to_first_token_seconds_count"] = exactly(1)
    adds[FRONTEND + "inter_token_latency_seconds_count"] = exactly(seen - 1)
    adds[FRONTEND + "output_sequence_tokens_count"] = exactly(1)
    adds[FRONTEND + "output_sequence_tokens_sum"] = exactly(seen)
    adds[FRONTEND + "output_tokens_total"] = exactly(seen)
    expect(before, adds, crowd.frontend)
    gauges = Counts.of(crowd.frontend).gauges
    assert gauges
    assert not any(gauges.values()), gauges
    eventually(
        lambda: not http(f"{crowd.frontend}/health").json()["instances"],
        within=15,
        what="the worker is withdrawn",
    )
    gone, before = no_worker(TEXTS, known=True), Counts.of(crowd.frontend)
    expect(before, of_answered(gone, Client(crowd.frontend, gone).read(), None), crowd.frontend)
