"""Requests at a prefill and a decode worker: real processes of frontend, workers and engines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from page_values import value
from stack import Answer, Stack, Worker, eventually, http

pytestmark = pytest.mark.slow

WORKER = ("--engine", "mocker", "--model", "mock", "--processes", "0", "--hang-timeout", "1")
SLOW = ("--first-token-seconds", "60")


@dataclass
class Running:
    url: str
    workers: dict[str, Worker]

    def page(self) -> str:
        return http(f"{self.url}/metrics").body.decode()

    def wait_for_requests(self, side: str, number: int) -> None:
        """Wait until a worker has this number of requests in flight."""

        def reached() -> bool:
            page = self.workers[side].page()
            return value(page, "dynamo_component_inflight_requests") == number

        eventually(reached, within=10, what=f"{number} requests at {side}")


@contextmanager
def pair(directory: Path, *engine: str, processes: int = 1) -> Iterator[Running]:
    stack = Stack(directory, Path("mock"), directory / "discovery")
    with ExitStack() as running:
        _, url = running.enter_context(stack.run_frontend("--processes", str(processes)))
        workers = {
            side: running.enter_context(
                stack.run_worker(
                    *WORKER,
                    "--disaggregation-mode",
                    side,
                    *engine,
                    DYN_CANARY_WAIT_TIME="0.2",
                    DYN_HEALTH_CHECK_REQUEST_TIMEOUT="0.3",
                )
            )
            for side in ("prefill", "decode")
        }
        for worker in workers.values():
            worker.wait_until_ready()
        ready = f"{url}/v1/health/ready?model=mock"
        # Each process of the frontend answers some of these requests.
        eventually(
            lambda: all(http(ready).status == 200 for _ in range(8)), within=10, what="both known"
        )
        yield Running(url, workers)


def test_each_request_reaches_both_workers_and_is_counted_once(tmp_path: Path) -> None:
    with pair(tmp_path, processes=2) as running:
        for number in range(10):
            body = {"model": "mock", "prompt": "a b", "max_tokens": 4, "stream": number % 2 == 0}
            answer = http(f"{running.url}/v1/completions", body)
            assert answer.status == 200, answer.body
        for side, worker in running.workers.items():
            requests = value(worker.page(), "dynamo_component_requests_total")
            assert requests == 10, side
            running.wait_for_requests(side, 0)
        page = running.page()
        assert value(page, "dynamo_frontend_requests_total", status="success") == 10
        assert value(page, "dynamo_frontend_output_tokens_total") == 40


@pytest.mark.parametrize(
    ("side", "event"),
    [
        # tests/disagg has the engines of both sides, killed and stopped.
        ("prefill", "worker killed"),
        ("prefill", "engine stopped"),
        ("decode", "engine killed"),
    ],
)
def test_no_request_stays_at_the_other_worker_when_one_dies_or_hangs(
    tmp_path: Path, side: str, event: str
) -> None:
    other = "decode" if side == "prefill" else "prefill"
    with pair(tmp_path, *SLOW) as running, ThreadPoolExecutor(1) as threads:
        request: Future[Answer] = threads.submit(
            http, f"{running.url}/v1/completions", {"model": "mock", "prompt": "x"}
        )
        for one in running.workers:
            running.wait_for_requests(one, 1)
        worker = running.workers[side]
        engine = worker.engine
        if event == "worker killed":
            os.kill(worker.process.pid, signal.SIGKILL)
        else:
            engine.send_signal(signal.SIGKILL if "killed" in event else signal.SIGSTOP)
        try:
            answer = request.result(timeout=20)
        finally:
            if event == "engine stopped":
                engine.send_signal(signal.SIGCONT)
        error = answer.json()["error"]
        assert isinstance(error, dict)
        assert (answer.status, error["code"]) == (502, "engine_error")
        if event == "engine stopped":
            changed = f"The state of the {side} worker became unresponsive"
            assert error["message"] == f"{changed} during this request"
        running.wait_for_requests(other, 0)
        page = running.page()
        assert value(page, "dynamo_frontend_requests_total") == 1
        reason = "transport.disconnected" if event == "worker killed" else "backend.engine_shutdown"
        assert value(page, "dynamo_frontend_failures_total", reason=reason) == 1
        assert value(page, "dynamometer_frontend_retries_total") == 0
        states = running.workers[other].page()
        assert value(states, "dynamometer_engine_state", state="ready") == 1
