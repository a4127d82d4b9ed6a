"""The families about an engine's life, with the real engine."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from stack import Stack, Worker, eventually, http

pytestmark = pytest.mark.engine


@pytest.fixture
def worker(stack: Stack) -> Worker:
    assert stack.worker is not None
    return stack.worker


def shown(worker: Worker, name: str, label: str = "") -> Mapping[str, float]:
    """Return the values of a family, by one of its labels."""
    return {
        sample.labels.get(label, ""): sample.value
        for family in parse(worker.page())
        for sample in family.samples
        if sample.name == f"dynamometer_engine_{name}"
    }


def complete(stack: Stack, worker: Worker) -> None:
    body = {"model": str(stack.model), "prompt": "on and on", "max_tokens": 4}
    assert http(f"{worker.request_url}/v1/completions", body).status == 200


def changed_at(worker: Worker) -> float:
    return shown(worker, "last_change_timestamp_seconds")[""]


def test_a_request_is_a_change_and_checks_and_scrapes_are_none(
    stack: Stack, worker: Worker
) -> None:
    started = time.time()
    complete(stack, worker)
    eventually(lambda: changed_at(worker) > started, within=5, what="the request is a change")
    before: list[float] = []

    def settled() -> bool:
        """SGLang writes a part of its totals after the answer."""
        before.append(changed_at(worker))
        return len(before) > 3 and before[-1] == before[-4]

    eventually(settled, within=10, what="the totals of the request are written")
    for path in ("/health_generate", "/health", "/metrics", "/v1/loads", "/v1/models") * 2:
        assert http(f"{worker.engine_url}{path}").status == 200
        assert changed_at(worker) == before[-1], path
    complete(stack, worker)
    eventually(lambda: changed_at(worker) > before[-1], within=5, what="another change")


def test_an_idle_engine_is_ready_started_and_alive(worker: Worker) -> None:
    states = shown(worker, "state", "state")
    assert states["ready"] == 1
    assert sum(states.values()) == 1
    assert set(shown(worker, "restarts_total", "reason")) == {
        "exit", "signal", "out_of_memory", "hang",
    }  # fmt: skip
    start = shown(worker, "start_time_seconds")[""]
    assert abs(start - worker.engine.create_time()) < 3
    before = shown(worker, "last_progress_timestamp_seconds", "dp_rank")

    def proven() -> bool:
        now = shown(worker, "last_progress_timestamp_seconds", "dp_rank")
        return now.get("0", 0) > max(before.get("0", 0), time.time() - 10)

    eventually(proven, within=20, what="a proof of life without a request")
