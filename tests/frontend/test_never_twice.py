"""Requests when workers die: real processes of frontend, workers and simulated engines."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from page_values import value
from stack import Answer, Stack, Worker, eventually, http

SLOW = ("--first-token-seconds", "60")
WORKER = ("--engine", "mocker", "--model", "mock", "--processes", "0")


def in_flight(worker: Worker) -> float:
    return value(worker.page(), "dynamo_component_inflight_requests")


@pytest.mark.parametrize("killed", ["worker", "engine"])
def test_request_that_kills_one_of_two_is_not_sent_to_the_other(
    tmp_path: Path, killed: str
) -> None:
    stack = Stack(tmp_path, Path("mock"), tmp_path / "discovery")
    with ExitStack() as running:
        _, url = running.enter_context(stack.run_frontend())
        workers = [running.enter_context(stack.run_worker(*WORKER, *SLOW)) for _ in range(2)]
        for worker in workers:
            worker.wait_until_ready()
        eventually(
            lambda: both_ready(http(f"{url}/metrics").body.decode()), within=10, what="both known"
        )
        threads = running.enter_context(ThreadPoolExecutor(1))
        request: Future[Answer] = threads.submit(
            http, f"{url}/v1/completions", {"model": "mock", "prompt": "x"}
        )
        eventually(lambda: any(map(in_flight, workers)), within=10, what="the request at a worker")
        first, other = sorted(workers, key=in_flight, reverse=True)
        if killed == "worker":
            os.kill(first.process.pid, signal.SIGKILL)
        else:
            first.engine.kill()
        answer = request.result(timeout=30)
        assert answer.status == 502
        assert json.loads(answer.body)["error"]["code"] == "engine_error"
        page = http(f"{url}/metrics").body.decode()
        assert value(page, "dynamometer_frontend_retries_total") == 0
        assert in_flight(other) == value(other.page(), "dynamo_component_requests_total") == 0


def both_ready(page: str) -> bool:
    return value(page, "dynamometer_frontend_workers", model="mock", state="ready") == 2
