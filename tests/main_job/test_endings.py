"""How workers end: asked, killed, or because of their engine; nothing of them is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from processes import PYTHON
from stack import Answer, Stack, Worker, eventually, http

pytestmark = [pytest.mark.engine, pytest.mark.slow]
SHARED_MEMORY = Path("/dev/shm")
ALL_GONE_SECONDS = 15


def left_behind() -> set[str]:
    """Files in /dev/shm of the kinds that engines and workers make, and temporary directories."""
    kinds = ("dynamometer-", "sglang", "sem.", "psm_")
    shared = {name for name in os.listdir(SHARED_MEMORY) if name.startswith(kinds)}
    return shared | {path.name for path in Path(tempfile.gettempdir()).glob("dyno-*")}


def processes_of(worker: Worker) -> list[psutil.Process]:
    return worker.process.descendants()


def all_gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    def gone() -> bool:
        return not [p for p in processes if p.is_running() and p.status() != "zombie"]

    return gone


def long_stream(
    url: str, model: Path, tokens: int, **headers: str
) -> tuple[threading.Thread, list[Answer]]:
    """A stream in the background, and where its answer will be."""
    answers: list[Answer] = []
    body = {
        "model": str(model),
        "prompt": "go on",
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    thread = threading.Thread(
        target=lambda: answers.append(http(f"{url}/v1/completions", body, **headers)), daemon=True
    )
    thread.start()
    return thread, answers


def test_a_worker_that_is_asked_to_end_finishes_its_streams_and_leaves_nothing(
    stack: Stack,
) -> None:
    before = left_behind()
    flags = ("--model", str(stack.model), "--served-model-name", "ending", "--api-key", "secret")
    with stack.run_worker(*flags) as worker:
        worker.wait_until_ready()  # with a key of the engine's, which the worker knows
        family = processes_of(worker)
        refused = http(f"{stack.frontend_url}/v1/completions", {"model": "ending", "prompt": "x"})
        assert refused.status == 401
        key = {"Authorization": "Bearer secret"}
        thread, answers = long_stream(worker.request_url, Path("ending"), 400, **key)
        time.sleep(0.3)
        worker.process.signal(signal.SIGINT)
        eventually(
            lambda: http(f"{worker.system_url}/health").status == 503,
            within=1,
            what="health says that it is draining",
        )
        models = str(http(f"{stack.frontend_url}/v1/models").json())
        assert "'ending'" not in models
        answer = http(
            f"{stack.frontend_url}/v1/completions", {"model": "ending", "prompt": "too late"}
        )
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        thread.join(30)
        assert answers[0].status == 200
        assert answers[0].body.endswith(b"data: [DONE]\n\n")
        assert worker.process.wait(within=ALL_GONE_SECONDS) == 0
        assert not [process for process in family if process.is_running()]  # not even a zombie
        said = worker.process.log.splitlines()
        assert not [line for line in said if "Traceback" in line and "[engine]" not in line]
    assert left_behind() <= before
    assert list((stack.discovery / "instances").iterdir())  # the session's own records stand


def test_a_killed_workers_engine_ends_and_the_next_start_clears_what_is_left(
    stack: Stack,
) -> None:
    before = left_behind()
    with stack.run_worker(
        "--model", str(stack.model), "--served-model-name", "killed", "--enable-metrics"
    ) as worker:
        worker.wait_until_ready()
        family = processes_of(worker)
        assert len(family) >= 3
        assert "killed" in str(http(f"{stack.frontend_url}/v1/models").json())
        worker.process.signal(signal.SIGKILL)
        worker.process.wait(within=5)
        assert "killed" not in str(http(f"{stack.frontend_url}/v1/models").json())
        eventually(all_gone(family), within=ALL_GONE_SECONDS, what="its engine is gone")
    left = left_behind() - before
    assert any(name.startswith("sglang_loads_") for name in left)
    with stack.run_worker("--model", "no-such-model") as successor:
        successor.process.wait_for("removed after the killed worker [0-9a-f]{16}", within=10)
    assert left_behind() <= before


def test_an_engine_that_ends_takes_its_worker_along_with_the_reason(stack: Stack) -> None:
    with stack.run_worker("--model", str(stack.model), "--served-model-name", "dying") as worker:
        worker.wait_until_ready()
        family = processes_of(worker)
        thread, answers = long_stream(stack.frontend_url, Path("dying"), 1800)
        time.sleep(0.5)
        worker.engine.send_signal(signal.SIGKILL)
        assert worker.process.wait(within=10) == 1
        last = worker.process.log.strip().splitlines()[-1]
        assert last.startswith("error: the engine ended: ")
        assert "signal 9" in last
        thread.join(10)
        events = answers[0].body.split(b"\n\n")
        assert b'"code": "engine_error"' in events[-2]
        assert all_gone(family)()
        page = http(f"{stack.frontend_url}/metrics").body.decode()
        assert re.search(
            r'requests_total\{.*error_type="unavailable",model="dying".*stream".*\} 1\.0', page
        )
        gone = http(f"{stack.frontend_url}/v1/completions", {"model": "dying", "prompt": "x"})
        assert gone.status == 503


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--model", "/no/such/model"), "/no/such/model"),
        (("--model", "{model}", "--no-such-flag", "7"), "unrecognized arguments: --no-such-flag 7"),
        (("--model", "{model}", "--engine-python", "/no/such/python"), "/no/such/python"),
    ],
)
def test_an_engine_that_cannot_start_ends_its_worker_with_its_own_reason(
    stack: Stack, flags: tuple[str, ...], reason: str
) -> None:
    before = left_behind()
    command = [PYTHON, "-m", "dynamometer.sglang"]
    command += [flag.format(model=stack.model) for flag in flags]
    environment = os.environ | stack.environment | {"DYN_SYSTEM_PORT": "0"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
    own = [line for line in done.stderr.splitlines() if not line.startswith("[engine]")]
    assert not any("Traceback" in line for line in own)
    assert left_behind() <= before


def test_a_worker_without_enable_metrics_says_so(stack: Stack) -> None:
    with stack.run_worker("--model", str(stack.model)) as worker:
        said = worker.process.wait_for("--enable-metrics is missing: .*", within=5)[0]
        assert "no sglang: families" in said
        page = worker.page()
        assert "dynamo_component_uptime_seconds" in page
        assert "sglang:" not in page


def test_the_page_and_health_are_there_within_a_second(stack: Stack) -> None:
    begun = time.monotonic()
    port = 18734
    with stack.run_worker("--model", str(stack.model), system_port=port) as worker:
        took = time.monotonic() - begun
        health = http(f"http://127.0.0.1:{port}/health")
        assert health.status == 503
        assert health.json()["status"] == "notready"
        assert health.json()["endpoints"] == {}
        assert http(f"http://127.0.0.1:{port}/live").status == 200
        assert re.search(
            r'^dynamo_component_uptime_seconds\{worker_id="', worker.page(), re.MULTILINE
        )
    assert took < 60  # measured by `benchmarks/start.py`; no timed assertion here


def test_a_taken_system_port_is_an_error_only_where_it_was_asked_for(stack: Stack) -> None:
    assert stack.worker is not None
    taken = stack.worker.system_url.rsplit(":", 1)[1]
    command = [PYTHON, "-m", "dynamometer.sglang", "--model", str(stack.model)]
    environment = os.environ | stack.environment | {"DYN_SYSTEM_PORT": taken}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"port {taken} on 127.0.0.1 is already in use" in done.stderr
    if taken == "8081":
        with stack.run_worker("--model", str(stack.model), system_port=None) as worker:
            assert worker.system_url != stack.worker.system_url
            assert "port 8081 is already in use" in worker.process.log
