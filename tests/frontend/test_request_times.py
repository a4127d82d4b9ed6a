"""The times of a request, by a clock that the test sets."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from dynamometer.engines.interface import Usage
from dynamometer.engines.streams import StreamReader
from dynamometer.frontend.request_metrics import RequestMetrics
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.record import Record, Role, State

WORKER = 7
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def passes(self, seconds: float) -> float:
        self.now += seconds
        return self.now


def sums(registry: CollectorRegistry) -> dict[str, float]:
    """The `_sum` of each histogram, and the gauges of last values, without those that are 0."""
    return {
        sample.name.removesuffix("_sum") + "".join(f"|{sample.labels.get('stage', '')}"): value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.endswith("_sum") or "_worker_last_" in sample.name
        if (value := round(sample.value, 6))
    }


def test_each_time_is_from_where_it_says_to_where_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is tried at a second worker, because the first does not take it."""
    clock = Clock(monkeypatch)
    registry = CollectorRegistry()
    metrics = FrontendMetrics(registry)
    fleet = Fleet()
    metrics.follow(fleet)
    worker = Record(
        role=Role.WORKER,
        id=WORKER,
        namespace="n",
        component="c",
        models=("m",),
        request_url="http://127.0.0.1:1",
        state=State.READY,
    )
    fleet.update([worker])
    request = RequestMetrics(metrics, "chat_completions")
    clock.passes(1)  # the body is read
    request.record_body("m", stream=True)
    clock.passes(0.5)
    request.start_routing()
    clock.passes(0.25)
    request.start_dispatch(3)
    clock.passes(8)  # and is not answered
    request.start_routing()
    clock.passes(0.125)
    request.start_dispatch(WORKER)
    reader = StreamReader(Usage.OPENAI, hide_usage=True, on_content=request.record_content)
    request.record_first_bytes(clock.passes(2))
    for gap in (1, 4, 16):
        reader.feed(EVENT, clock.passes(gap))
    reader.feed(USAGE, clock.passes(1))
    request.record_stream_end(None)
    request.record_stream(reader)
    clock.passes(32)
    request.finish()
    before_first = 1 + 0.5 + 0.25 + 8 + 0.125 + 2 + 1
    assert sums(registry) == {
        "dynamo_frontend_request_duration_seconds|": before_first + 4 + 16 + 1 + 32,
        "dynamo_frontend_time_to_first_token_seconds|": before_first,
        "dynamo_frontend_inter_token_latency_seconds|": 4 + 16,
        "dynamo_frontend_input_sequence_tokens|": 5,
        "dynamo_frontend_output_sequence_tokens|": 9,
        "dynamo_frontend_cached_tokens|": 4,
        "dynamo_frontend_stage_duration_seconds|preprocess": 1,
        "dynamo_frontend_stage_duration_seconds|route": 0.25 + 0.125,
        "dynamo_frontend_stage_duration_seconds|transport_roundtrip": 2,
        "dynamo_request_plane_queue_seconds|": 1 + 0.5 + 0.25,
        "dynamo_request_plane_roundtrip_ttft_seconds|": 2,
        "dynamo_frontend_worker_last_time_to_first_token_seconds|": before_first,
        "dynamo_frontend_worker_last_inter_token_latency_seconds|": 16,
        "dynamo_frontend_worker_last_input_sequence_tokens|": 5,
    }
