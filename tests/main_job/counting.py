"""The numbers of both pages, the requests that change them, and the answers to clients."""

from __future__ import annotations

import http.client
import json
import math
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families as parse

from stack import http as fetch

OURS = ("dynamo_", "dynamometer_")
# The event loop is measured every 10 ms, also without requests.
BY_ITSELF = ("dynamo_frontend_event_loop_",)
# Families of the engine that a load determines, whatever the prefix cache holds.
ENGINES = (
    "sglang:num_requests_total",
    "sglang:num_aborted_requests_total",
    "sglang:prompt_tokens_total",
    "sglang:generation_tokens_total",
    "sglang:http_requests_total",
    "sglang:time_to_first_token_seconds_count",
    "sglang:inter_token_latency_seconds_count",
    "sglang:e2e_request_latency_seconds_count",
)
GAUGES = (
    "dynamo_frontend_active_requests",
    "dynamo_frontend_inflight_requests",
    "dynamo_frontend_queued_requests",
    "dynamo_frontend_stage_requests",
    "dynamo_request_plane_inflight_requests",
    "dynamo_component_inflight_requests",
    "dynamometer_engine_running_requests",
    "dynamometer_engine_queued_requests",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
)
# SGLang counts the request of a stream as active until 2 s after its end.
LATE_GAUGES = ("sglang:http_requests_active",)
# Has the type gauge, but never falls.
ONLY_RISES = "dynamo_frontend_disconnected_clients"
# Labels that distinguish the series of a frontend; the others are equal on all of them.
LABELS = ("class", "endpoint", "error_type", "reason", "request_type", "stage", "status")


class Range(NamedTuple):
    """The allowed increase of a counter."""

    low: float
    high: float

    def __add__(self, other: object) -> Range:
        assert isinstance(other, Range)
        return Range(self.low + other.low, self.high + other.high)


def exactly(number: float) -> Range:
    return Range(number, number)


def at_least(number: float) -> Range:
    return Range(number, math.inf)


def key(name: str, **labels: str) -> str:
    return name + "".join(f" {label}={labels[label]}" for label in sorted(labels))


@dataclass
class Counts:
    """The counters of both pages at one time, and the gauges of requests in each state."""

    rising: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    late_gauges: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, *urls: str) -> Counts:
        made = cls()
        for url in urls:
            for family in parse(fetch(f"{url}/metrics").body.decode()):
                for sample in family.samples:
                    made._add(family.type, sample.name, sample.labels, sample.value)
        return made

    def _add(self, kind: str, name: str, labels: Mapping[str, str], value: float) -> None:
        if name.startswith("sglang:http_") and labels["method"] != "POST":
            return  # the worker's own questions to the engine
        if name in GAUGES or name in LATE_GAUGES:
            gauges = self.gauges if name in GAUGES else self.late_gauges
            gauges[name] = gauges.get(name, 0) + value
            return
        rises = kind == "counter" and not name.endswith("_created")
        rises |= kind == "histogram" and name.endswith(("_count", "_tokens_sum"))
        if name in ENGINES:
            one = name
        elif name.startswith(OURS) and not name.startswith(BY_ITSELF):
            of_frontend = not name.startswith("dynamo_component_")
            kept = {label: labels[label] for label in LABELS if of_frontend and label in labels}
            if "error_type" in labels:
                kept["error_type"] = labels["error_type"]
            if labels.get("model") == "unknown_model":
                kept["model"] = "unknown_model"
            one = key(name, **kept)
        else:
            return
        if rises or name == ONLY_RISES:
            self.rising[one] = self.rising.get(one, 0) + value

    def since(self, before: Counts) -> dict[str, float]:
        rises = {k: v - before.rising.get(k, 0) for k, v in self.rising.items()}
        return {k: rise for k, rise in rises.items() if rise}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request, and its expected outcome.

    Attributes:
        status: the HTTP status of the answer; 0 if the client closes the connection before.
        error: `error_type` at the frontend; empty for a success.
        failure: class and reason; empty for a request that has not failed.
        known: True if the body names a registered model.
        read: True if the body is read to its end.
        sent: True if the request reaches the worker, and with it the engine.
        choices: the number of answers requested from the engine; 0 if the engine refuses.
        n: the number of answers for each prompt.
    """

    path: str
    body: object
    status: int = 200
    error: str = ""
    failure: tuple[str, str] | tuple[()] = ()
    known: bool = True
    read: bool = True
    sent: bool = True
    choices: int = 1
    n: int = 1

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    @property
    def option(self) -> Mapping[str, object]:
        return self.body if isinstance(self.body, dict) else {}

    @property
    def stream(self) -> bool:
        return bool(self.option.get("stream"))

    @property
    def route(self) -> str:
        if self.path == "/v1/messages":
            return "anthropic_messages"
        return self.path.removeprefix("/v1/").replace("/", "_").removeprefix("_")

    @property
    def hides_usage(self) -> bool:
        """True if the frontend requests the usage and removes it from the client's stream."""
        openai = self.path in ("/v1/chat/completions", "/v1/completions")
        return openai and self.stream and "stream_options" not in self.option

    def but(self, **changes: object) -> Request:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass
class Got:
    """The answer that a client received: the body as far as the client read it."""

    status: int
    body: bytes

    def events(self) -> list[dict[str, object]]:
        lines = self.body.splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]

    def content_events(self) -> int:
        return sum(map(_has_content, self.events()))

    def tokens(self) -> dict[str, int]:
        """Return the numbers of tokens: `input`, `output` and, if reported, `cached`."""
        said: dict[str, int] = {}
        parts = self.events()
        if not parts and self.body:
            whole = json.loads(self.body)
            several = whole if isinstance(whole, list) else [whole]
            parts = [{"index": number, **part} for number, part in enumerate(several)]
        generated: dict[object, Mapping[str, object]] = {}
        for part in parts:
            if isinstance(meta := part.get("meta_info"), dict):
                generated[part.get("index")] = meta
            for holder in (part, part.get("message"), part.get("response")):
                if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
                    said |= _usage(holder["usage"])
        for meta in generated.values():
            for name, value in _usage(meta).items():
                said[name] = said.get(name, 0) + value
        return said


def _has_content(event: Mapping[str, object]) -> bool:
    choices = event.get("choices")
    if isinstance(choices, list):
        return any(c.get("text") or c.get("delta", {}).get("content") for c in choices)
    kind = str(event.get("type"))
    return "meta_info" in event or kind == "content_block_delta" or kind.endswith(".delta")


def _usage(usage: Mapping[str, object]) -> dict[str, int]:
    names = {
        "prompt_tokens": "input",
        "input_tokens": "input",
        "completion_tokens": "output",
        "output_tokens": "output",
        "cached_tokens": "cached",
    }
    details = usage.get("input_tokens_details")
    flat = {**usage, **(details if isinstance(details, dict) else {})}
    return {ours: flat[name] for name, ours in names.items() if isinstance(flat.get(name), int)}


class Client:
    """A request on a connection of its own, which the test closes."""

    def __init__(self, url: str, request: Request, **headers: str) -> None:
        address = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=60
        )
        headers = {"Content-Type": "application/json", **headers}
        self._connection.request("POST", request.path, request.content, headers)
        self._response: http.client.HTTPResponse | None = None
        self.got = Got(0, b"")

    def read(self) -> Got:
        """Read the answer to its end, and return all of it."""
        self.got.body += self._respond().read()
        self.close()
        return self.got

    def read_events(self, content: int) -> None:
        """Read until `content` events with content have arrived."""
        while self.got.content_events() < content:
            self._line()

    def read_until(self, last: tuple[bytes, ...]) -> None:
        """Read to the end of the event that has a line with one of these beginnings."""
        while not self._line().startswith(last):
            pass
        while self._line() != b"\n":
            pass

    def _respond(self) -> http.client.HTTPResponse:
        if self._response is None:
            self._response = self._connection.getresponse()
            self.got.status = self._response.status
        return self._response

    def _line(self) -> bytes:
        line = self._respond().readline()
        assert line, "the stream ended"
        self.got.body += line
        return line

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self._connection.close()


def unexpected(rose: Mapping[str, float], adds: Mapping[str, Range]) -> dict[str, str]:
    """Return the counters with an increase that is not allowed, with a message for each."""
    found = {}
    for name in {*rose, *adds}:
        allowed, by = adds.get(name, exactly(0)), rose.get(name, 0)
        if not allowed.low <= by <= allowed.high:
            found[name] = f"rose by {by:g}, not {allowed.low:g} to {allowed.high:g}"
    return found


def together(parts: Iterable[Mapping[str, Range]]) -> dict[str, Range]:
    whole: dict[str, Range] = {}
    for part in parts:
        for name, amount in part.items():
            whole[name] = whole.get(name, exactly(0)) + amount
    return whole
