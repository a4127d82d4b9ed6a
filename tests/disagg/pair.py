"""A prefill worker and a decode worker behind a frontend, and the requests that they answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from page_values import value
from processes import Process
from stack import Answer, Worker, eventually, http

MODEL = "paired"
HANG_SECONDS = 6
FLAGS = (
    *("--served-model-name", MODEL, "--enable-metrics"),
    *("--hang-timeout", str(HANG_SECONDS), "--max-total-tokens", "4096"),
)
# An engine with a request that waits for the other side uses a whole core until one of its limits.
LIMITS = {
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "20",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "20",
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",
    "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1",
}
QUEUED = "dynamometer_engine_queued_requests"
RUNNING = "dynamometer_engine_running_requests"
SAMPLING = {"temperature": 0, "ignore_eos": True}
TEXT = {"model": MODEL, "max_tokens": 8, **SAMPLING}
CHAT = {**TEXT, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
GENERATE = {"sampling_params": {"max_new_tokens": 8, **SAMPLING}}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
Request = tuple[str, Mapping[str, object]]
REQUESTS: Final[Mapping[str, Request]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "streamed chat": ("/v1/chat/completions", {**CHAT, **USAGE}),
    "completion": ("/v1/completions", {**TEXT, "prompt": "Once upon a time"}),
    "streamed completion": ("/v1/completions", {**TEXT, **USAGE, "prompt": "Once upon a time"}),
    "three prompts": ("/v1/completions", {**TEXT, "prompt": ["one", "two two", "three"]}),
    "generate": ("/generate", {**GENERATE, "text": "The sun rises in the"}),
    "two texts": ("/generate", {**GENERATE, "text": ["first", "second second"]}),
    "message": ("/v1/messages", CHAT),
    "streamed message": ("/v1/messages", {**CHAT, "stream": True}),
    "response": (
        "/v1/responses",
        {"model": MODEL, "input": "hi", "max_output_tokens": 8, "temperature": 0},
    ),
    "invocation": ("/invocations", CHAT),
}


@dataclass(frozen=True)
class Pair:
    """The processes, and the address of the frontend."""

    frontend: Process
    url: str
    prefill: Worker
    decode: Worker

    @property
    def workers(self) -> tuple[Worker, Worker]:
        return self.prefill, self.decode

    def complete(self, **members: object) -> Answer:
        return http(f"{self.url}/v1/completions", {**TEXT, "prompt": "hi", **members})

    def ready(self) -> Answer:
        """Return the frontend's answer whether the model can be served."""
        return http(f"{self.url}/v1/health/ready?model={MODEL}")

    def wait_until_idle(self, *, within: float) -> None:
        """Wait until no engine has a request, in any queue."""

        def idle() -> bool:
            return not any(queued(worker) or running(worker) for worker in self.workers)

        eventually(idle, within=within, what="both engines are idle")


def queued(worker: Worker) -> float:
    """Return the number of requests that wait in the queues of a worker's engine."""
    return value(worker.page(), QUEUED)


def running(worker: Worker) -> float:
    return value(worker.page(), RUNNING)


def send(url: str, request: Request) -> Answer:
    path, body = request
    return http(url + path, body)


@dataclass(frozen=True)
class Outcome:
    """The parts of an answer that do not differ between equal requests.

    Attributes:
        text: all generated text; the number of tokens in an event of a stream varies.
        facts: the token counts and the reasons of the end.
    """

    text: str
    facts: frozenset[tuple[str, object]]


def outcome(answer: Answer) -> Outcome:
    assert answer.status == 200, answer.body
    events = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: {")]
    found = [pair for part in events or [answer.body] for pair in _members(json.loads(part))]
    text = "".join(str(member) for name, member in found if name in _TEXTS)
    return Outcome(text, frozenset(one for one in found if one[0] not in _TEXTS))


def _members(value: object) -> Iterator[tuple[str, object]]:
    """Return the members of an outcome in a JSON value, in order."""
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict):
        for name, member in value.items():
            known = name in _TEXTS and isinstance(member, str)
            if known or (name in _FACTS and isinstance(member, str | int)):
                yield name, member
    if isinstance(children, Iterable) and not isinstance(children, str):
        for child in children:
            yield from _members(child)


_TEXTS: Final = frozenset({"text", "content", "delta"})
_FACTS: Final = frozenset(
    {
        *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"),
        *("finish_reason", "stop_reason", "type"),
    }
)
