"""The end of a worker: requested, by SIGKILL, or because of its engine; nothing remains of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from counting import Client, Request

from own_files import Files, namespace, processes_in
from processes import PYTHON, running
from stack import Answer, Stack, Worker, eventually, http

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
]
ALL_GONE_SECONDS = 15
DEFAULT_SYSTEM_PORT = 8081


@dataclass(frozen=True)
class Family:
    """A worker, its engine and all processes that they started.

    Attributes:
        mounts: their mount namespace.
        started: those that ran when the worker was ready, the worker itself excepted.
    """

    mounts: str
    started: list[psutil.Process]

    @classmethod
    def of(cls, worker: Worker) -> Family:
        mounts = namespace(worker.process.pid)
        assert mounts != namespace(os.getpid())
        started = worker.process.descendants()
        assert {process.pid for process in started} < {p.pid for p in processes_in(mounts)}
        assert len(started) >= 3
        return cls(mounts, started)

    def ended(self) -> bool:
        """Return whether no process lives; a zombie of `started` may remain."""
        living = [p for p in self.started if p.is_running() and p.status() != "zombie"]
        return not living and not processes_in(self.mounts)

    def reaped(self) -> bool:
        return self.ended() and not [p for p in self.started if p.is_running()]


def stream(url: str, model: str, tokens: int, **headers: str) -> Client:
    """Request a stream, and read its first token."""
    body = {
        "model": model,
        "prompt": "go on",
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    client = Client(url, Request(path="/v1/completions", body=body), **headers)
    client.read_events(content=1)
    return client


def complete(stack: Stack, model: str) -> Answer:
    return http(f"{stack.frontend_url}/v1/completions", {"model": model, "prompt": "x"})


def own_lines(log: str) -> list[str]:
    """Return the lines of a worker's log without those of its engine."""
    return [line for line in log.splitlines() if not line.startswith("[engine]")]


def test_a_worker_that_receives_sigint_finishes_its_streams_and_leaves_nothing(
    stack: Stack, files: Files
) -> None:
    # With an API key of the engine, which the worker's own requests need, too.
    flags = ("--model", str(stack.model), "--served-model-name", "ending", "--api-key", "secret")
    with stack.run_worker(*flags, before=files.before) as worker:
        worker.wait_until_ready()
        family = Family.of(worker)
        assert complete(stack, "ending").status == 401
        client = stream(worker.request_url, "ending", 400, Authorization="Bearer secret")
        worker.process.signal(signal.SIGINT)
        eventually(
            lambda: http(f"{worker.system_url}/health").status == 503,
            within=1,
            what="health reports that the worker is draining",
        )
        assert "'ending'" not in str(http(f"{stack.frontend_url}/v1/models").json())
        too_late = complete(stack, "ending")
        assert too_late.status == 503
        assert too_late.headers["Retry-After"]
        answer = client.read()
        assert answer.status == 200
        assert answer.body.endswith(b"data: [DONE]\n\n")
        answered = time.monotonic()
        while worker.process.running and time.monotonic() - answered < ALL_GONE_SECONDS:
            with contextlib.suppress(OSError):
                assert http(f"{worker.system_url}/live").status == 200
                assert "dynamo_component_uptime_seconds" in worker.page()
                answered = time.monotonic()
            time.sleep(0.05)  # between two looks at a process, which has no event
        assert time.monotonic() - answered < 1.5
        assert worker.process.wait(within=0) == 0
        assert family.reaped()
        assert not [line for line in own_lines(worker.process.log) if "Traceback" in line]
    assert files.left() == set()
    assert list((stack.discovery / "instances").iterdir())  # the records of the stack remain


def test_the_engine_of_a_killed_worker_ends_and_the_next_start_clears_its_files(
    stack: Stack, files: Files
) -> None:
    flags = ("--model", str(stack.model), "--served-model-name", "killed", "--enable-metrics")
    with stack.run_worker(*flags, before=files.before) as worker:
        worker.wait_until_ready()
        family = Family.of(worker)
        assert "killed" in str(http(f"{stack.frontend_url}/v1/models").json())
        worker.process.signal(signal.SIGKILL)
        worker.process.wait(within=5)
        assert "killed" not in str(http(f"{stack.frontend_url}/v1/models").json())
        eventually(family.ended, within=ALL_GONE_SECONDS, what="the engine has ended")
    left = files.left()
    assert any(name.startswith("sglang_loads_") for name in left)
    assert any(name.startswith("dyno-") for name in left)
    with stack.run_worker("--model", "no-such-model", before=files.before) as successor:
        successor.process.wait_for("removed after the killed worker [0-9a-f]{16}", within=10)
        successor.process.wait(within=30)
    assert files.left() == set()


def test_a_worker_ends_with_its_engine_and_reports_the_reason(stack: Stack, files: Files) -> None:
    flags = ("--model", str(stack.model), "--served-model-name", "dying", "--restart-limit", "0")
    with stack.run_worker(*flags, before=files.before) as worker:
        worker.wait_until_ready()
        family = Family.of(worker)
        client = stream(stack.frontend_url, "dying", 1800)
        worker.engine.send_signal(signal.SIGKILL)
        assert worker.process.wait(within=10) == 1
        last = worker.process.log.strip().splitlines()[-1]
        assert last.startswith("error: the engine ended: ")
        assert "signal 9" in last
        events = client.read().body.split(b"\n\n")
        assert b'"code": "engine_error"' in events[-2]
        assert family.ended()
        page = http(f"{stack.frontend_url}/metrics").body.decode()
        assert re.search(
            r'requests_total\{.*error_type="unavailable",model="dying".*stream".*\} 1\.0', page
        )
        assert complete(stack, "dying").status == 503
    assert files.left() == set()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--model", "/no/such/model"), "/no/such/model"),
        (("--model", "{model}", "--no-such-flag", "7"), "unrecognized arguments: --no-such-flag 7"),
        (("--model", "{model}", "--engine-python", "/no/such/python"), "/no/such/python"),
    ],
)
def test_a_worker_whose_engine_cannot_start_ends_with_the_engines_reason_and_leaves_nothing(
    stack: Stack, files: Files, tmp_path: Path, flags: tuple[str, ...], reason: str
) -> None:
    command = [*files.before, PYTHON, "-m", "dynamometer.sglang"]
    command += [flag.format(model=stack.model) for flag in flags]
    environment = stack.environment | {"DYN_SYSTEM_PORT": "0"}
    with running(command, tmp_path / "log", environment) as worker:
        assert worker.wait(within=60) == 1
        last = worker.log.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert reason in last
        assert not [line for line in own_lines(worker.log) if "Traceback" in line]
    assert files.left() == set()


def test_a_worker_without_enable_metrics_reports_that_engine_families_are_missing(
    stack: Stack,
) -> None:
    with stack.run_worker("--model", str(stack.model)) as worker:
        message = worker.process.wait_for("--enable-metrics is missing: .*", within=5)[0]
        assert "no sglang: families" in message
        worker.wait_until_ready()
        page = worker.page()
        assert "dynamo_component_uptime_seconds" in page
        assert "sglang:" not in page


def test_the_page_and_health_are_served_while_the_engine_starts(stack: Stack) -> None:
    with stack.run_worker("--model", str(stack.model)) as worker:
        health = http(f"{worker.system_url}/health")
        assert health.status == 503
        assert health.json()["status"] == "notready"
        assert health.json()["endpoints"] == {}
        assert http(f"{worker.system_url}/live").status == 200
        assert re.search(
            r'^dynamo_component_uptime_seconds\{worker_id="', worker.page(), re.MULTILINE
        )


def test_a_requested_system_port_that_is_taken_is_an_error(stack: Stack, tmp_path: Path) -> None:
    assert stack.worker is not None
    taken = stack.worker.system_url.rsplit(":", 1)[1]
    command = [PYTHON, "-m", "dynamometer.sglang", "--model", str(stack.model)]
    environment = stack.environment | {"DYN_SYSTEM_PORT": taken}
    with running(command, tmp_path / "log", environment) as worker:
        assert worker.wait(within=60) == 1
        assert f"port {taken} on 127.0.0.1 is already in use" in worker.log


def test_a_default_system_port_that_is_taken_is_replaced_by_a_free_one(stack: Stack) -> None:
    with socket.socket() as taken:
        # Another process may have the port: then it is taken, too.
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", DEFAULT_SYSTEM_PORT))
            taken.listen()
        with stack.run_worker("--model", str(stack.model), system_port=None) as worker:
            assert not worker.system_url.endswith(f":{DEFAULT_SYSTEM_PORT}")
            assert http(f"{worker.system_url}/live").status == 200
            assert f"port {DEFAULT_SYSTEM_PORT} is already in use" in worker.process.log
