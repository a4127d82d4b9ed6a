"""Requests while the engine of one of two workers is frozen: real processes."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import psutil

from page_values import value
from stack import Stack, eventually, http

WORKER = ("--engine", "mocker", "--model", "mock", "--processes", "0", "--hang-timeout", "1")
RETRIES = "dynamometer_frontend_retries_total"


def test_frozen_engine_gets_nothing_new_until_it_answers_again(tmp_path: Path) -> None:
    stack = Stack(tmp_path, Path("mock"), tmp_path / "discovery")

    def workers(url: str, state: str) -> float:
        page = http(f"{url}/metrics").body.decode()
        return value(page, "dynamometer_frontend_workers", model="mock", state=state)

    with ExitStack() as running:
        _, url = running.enter_context(stack.run_frontend())
        frozen, other = [
            running.enter_context(
                stack.run_worker(
                    *WORKER, DYN_CANARY_WAIT_TIME="0.2", DYN_HEALTH_CHECK_REQUEST_TIMEOUT="0.3"
                )
            )
            for _ in range(2)
        ]
        frozen.wait_until_ready()
        other.wait_until_ready()
        eventually(lambda: workers(url, "ready") == 2, within=10, what="both known")
        engine: psutil.Process = frozen.engine
        engine.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: workers(url, "unresponsive") == 1, within=20, what="it is noticed")
            body = {"model": "mock", "prompt": "x", "max_tokens": 1}
            assert [http(f"{url}/v1/completions", body).status for _ in range(6)] == [200] * 6
            counted = value(other.page(), "dynamo_component_requests_total")
            assert (counted, value(frozen.page(), "dynamo_component_requests_total")) == (6, 0)
            assert http(f"{url}/v1/health/ready?model=mock").status == 200
        finally:
            engine.send_signal(signal.SIGCONT)
        eventually(lambda: workers(url, "ready") == 2, within=10, what="it is back")
        page = http(f"{url}/metrics").body.decode()
        assert value(page, RETRIES) == 0
        assert workers(url, "unresponsive") == 0
