"""The end of a worker by signals, and its stable number, around a simulated engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.parse
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from dynamometer.http.addresses import free_port
from dynamometer.process import private_directories
from dynamometer.process.children import alive
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.identity import hexadecimal, parse_id
from own_files import Files, namespace, processes_in
from processes import PYTHON, running
from stack import Answer, Stack, Worker, eventually, http

FLAGS = ("--engine", "mocker", "--model", "mock", "--enable-metrics")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    directory = tmp_path_factory.mktemp("worker")
    return Stack(directory, directory, directory / "discovery")


@contextlib.contextmanager
def stream(worker: Worker, tokens: int) -> Iterator[HTTPResponse]:
    """Start a stream on a connection of its own; its first line was read."""
    client = HTTPConnection(urllib.parse.urlsplit(worker.request_url).netloc, timeout=30)
    body = {"model": "mock", "prompt": "x", "stream": True, "max_tokens": tokens}
    client.request("POST", "/v1/completions", json.dumps(body))
    response = client.getresponse()
    assert response.status == 200
    response.readline()
    with contextlib.closing(client):
        yield response


def complete(worker: Worker) -> Answer:
    return http(
        f"{worker.request_url}/v1/completions", {"model": "mock", "prompt": "x", "max_tokens": 1}
    )


def states(stack: Stack) -> list[str]:
    """Return the states of the workers in discovery."""
    return [record.state for record in asyncio.run(FileDiscovery(stack.discovery).records())]


def answers(worker: Worker, *paths: str) -> bool:
    return all(http(f"{worker.system_url}{path}").status == 200 for path in paths)


def test_a_worker_that_ends_serves_the_drain_delay_and_finishes_its_streams(stack: Stack) -> None:
    flags = (*FLAGS, "--tokens-per-second", "50", "--drain-delay", "2", "--drain-timeout", "30")
    with stack.run_worker(*flags) as worker:
        worker.wait_until_ready()
        with stream(worker, 400) as response:
            worker.process.signal(signal.SIGTERM)
            eventually(lambda: not worker.ready(), within=1, what="health is 503")
            eventually(lambda: states(stack) == ["draining"], within=1, what="record not ready")
            assert complete(worker).status == 200  # on a new connection
            assert answers(worker, "/live", "/metrics")
            eventually(lambda: complete(worker).status == 503, within=5, what="no new requests")
            assert complete(worker).headers["Retry-After"]
            assert answers(worker, "/live", "/metrics")
            assert not worker.ready()
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert worker.process.wait(within=15) == 0
    assert states(stack) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", ["0", "60"])
def test_a_second_signal_ends_a_worker_at_once(
    stack: Stack, number: signal.Signals, delay: str
) -> None:
    with stack.run_worker(*FLAGS, "--drain-delay", delay, "--drain-timeout", "60") as worker:
        worker.wait_until_ready()
        started = worker.process.descendants()
        with stream(worker, 10_000):
            worker.process.signal(number)
            worker.process.wait_for(f"{number.name}: ending", within=5)
            worker.process.signal(number)
            assert worker.process.wait(within=5) == 0
        assert not [process for process in started if alive(process)]
        assert "requests broken off: 1" in worker.process.log
        assert "killing the engine" in worker.process.log
        assert "Ctrl-C again kills" not in worker.process.log
    assert states(stack) == []


def test_streams_that_exceed_the_drain_timeout_are_ended(stack: Stack) -> None:
    with stack.run_worker(*FLAGS, "--drain-timeout", "0.5") as worker:
        worker.wait_until_ready()
        with stream(worker, 10_000):
            worker.process.signal(signal.SIGTERM)
            assert worker.process.wait(within=15) == 0
        assert "requests broken off: 1" in worker.process.log


def test_an_engine_that_dies_while_its_worker_ends_is_not_started_again(stack: Stack) -> None:
    with stack.run_worker(*FLAGS, "--drain-delay", "3") as worker:
        worker.wait_until_ready()
        worker.process.signal(signal.SIGTERM)
        worker.process.wait_for("SIGTERM", within=5)
        worker.engine.kill()
        assert worker.process.wait(within=15) == 0
        assert "the engine ended: it was killed by signal 9" in worker.process.log
        assert worker.process.log.count("engine started") == 1
        assert "starting it again" not in worker.process.log


def test_a_worker_that_is_still_starting_ends_at_once(stack: Stack) -> None:
    flags = (*FLAGS, "--first-token-seconds", "60", "--drain-delay", "60")
    with stack.run_worker(*flags) as worker:
        worker.process.wait_for("engine started", within=10)
        worker.process.signal(signal.SIGTERM)
        assert worker.process.wait(within=10) == 0
    assert states(stack) == []


def test_a_worker_ignores_sigquit_which_orphans_of_its_engine_send(stack: Stack) -> None:
    with stack.run_worker(*FLAGS) as worker:
        worker.process.wait_for("engine started", within=10)
        worker.process.signal(signal.SIGQUIT)
        worker.wait_until_ready()
        worker.process.signal(signal.SIGQUIT)
        assert complete(worker).status == 200
        assert answers(worker, "/live", "/metrics")
        worker.process.signal(signal.SIGTERM)
        assert worker.process.wait(within=10) == 0


def worker_ids(worker: Worker) -> set[str]:
    return {
        part.split('"')[1]
        for line in worker.page().splitlines()
        for part in line.split(",")
        if "worker_id=" in part
    }


def test_a_worker_keeps_its_number_and_its_ports_after_a_kill(stack: Stack) -> None:
    port, system_port = free_port(), free_port()
    flags = (*FLAGS, "--worker-id", "worker-7", "--port", str(port))
    number = hexadecimal(parse_id("worker-7"))
    directory = private_directories.create_memory() / number
    with stack.run_worker(*flags, system_port=system_port) as worker:
        worker.wait_until_ready()
        assert worker_ids(worker) == {number}
        started = worker.process.descendants()
        worker.process.signal(signal.SIGKILL)
        worker.process.wait(within=5)
        assert states(stack) == []
    with stack.run_worker(*flags, system_port=system_port) as worker:
        worker.wait_until_ready()
        assert worker_ids(worker) == {number}
        assert not [process for process in started if alive(process)]
    assert not directory.exists()


def test_a_second_worker_with_the_id_of_a_live_one_is_an_error_and_touches_nothing(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.run_worker(*FLAGS, "--worker-id", "0x2a") as worker:
        worker.wait_until_ready()
        command = [PYTHON, "-m", "dynamometer.sglang", *FLAGS, "--worker-id", "42"]
        with running(
            command, tmp_path / "log", stack.environment | {"DYN_SYSTEM_PORT": "0"}
        ) as second:
            assert second.wait(within=20) == 1
            message = f"another worker with the id {hexadecimal(42)} is running"
            assert message in second.log
            assert second.log.count("\n") == 1
        assert worker.process.running
        assert complete(worker).status == 200
        assert worker_ids(worker) == {hexadecimal(42)}
        assert states(stack) == ["ready"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
def test_the_next_start_clears_after_workers_that_were_killed_at_any_moment(
    stack: Stack, files: Files, tmp_path: Path
) -> None:
    command = [*files.before, PYTHON, "-m", "dynamometer.sglang", *FLAGS]
    environment = stack.environment | {"DYN_SYSTEM_PORT": "0"}
    mounts = set()
    for number in range(12):
        with running(command, tmp_path / f"log-{number}", environment) as process:
            time.sleep(0.1 * number)  # the moment is the subject of the test
            mounts.add(namespace(process.pid))
            process.signal(signal.SIGKILL)
            process.wait(within=5)
    with stack.run_worker(*FLAGS, before=files.before) as worker:
        worker.wait_until_ready()
        own = hexadecimal(next(iter(asyncio.run(FileDiscovery(stack.discovery).records()))).id)
        assert len([name for name in files.left() if not name.startswith("dynamometer-")]) == 1
        assert [path.name for path in files.memory.glob("dynamometer-*/*")] == [own]
        # The namespace of a process that was killed before `unshare` is this one's.
        mounts.discard(namespace(os.getpid()))
        # The kernel may give a later worker the number of a namespace without processes.
        family = {worker.process.pid, *(child.pid for child in worker.process.descendants())}
        found = [process for one in mounts for process in processes_in(one)]
        assert not [process for process in found if process.pid not in family and alive(process)]
    assert files.left() == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
def test_clearing_after_a_killed_worker_touches_no_live_worker_with_its_number(
    stack: Stack, files: Files, tmp_path: Path
) -> None:
    """Two containers may see each other's processes, and share neither files nor discovery."""
    flags = (*FLAGS, "--worker-id", "container")
    elsewhere = Stack(tmp_path, tmp_path, tmp_path / "discovery")
    with stack.run_worker(*flags) as live:
        live.wait_until_ready()
        engine = live.engine
        with elsewhere.run_worker(*flags, before=files.before) as killed:
            killed.wait_until_ready()
            killed.process.signal(signal.SIGKILL)
            killed.process.wait(within=5)
        with elsewhere.run_worker(*flags, before=files.before) as successor:
            successor.wait_until_ready()
            assert alive(engine)
            assert complete(live).status == 200
