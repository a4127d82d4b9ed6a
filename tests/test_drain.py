"""`dyno drain`: one worker leaves the traffic and returns, around a simulated engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from dynamometer.drain import _run, find
from dynamometer.errors import DrainError
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.identity import hexadecimal, parse_id
from dynamometer.runtime.record import Record, Role, State
from processes import PYTHON, Process, running
from stack import Answer, Stack, Worker, eventually, http

FLAGS = ("--engine", "mocker", "--model", "mock", "--tokens-per-second", "20")
NAME = f"worker-{os.getpid()}"  # another run of the tests may have a worker, too
ID = hexadecimal(parse_id(NAME))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("drain")
    stack = Stack(directory, directory, directory / "discovery")
    with stack.run_frontend() as (_, stack.frontend_url):
        yield stack


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Iterator[Worker]:
    with stack.run_worker(*FLAGS, "--worker-id", NAME) as made:
        yield made.wait_until_ready()


@contextlib.contextmanager
def drain(stack: Stack, *arguments: str) -> Iterator[Process]:
    command = [PYTHON, "-m", "dynamometer.cli", "drain", *arguments]
    log = stack.directory / f"drain-{len(list(stack.directory.iterdir()))}.log"
    with running(command, log, stack.environment) as process:
        yield process


def result(stack: Stack, *arguments: str) -> tuple[int, str]:
    with drain(stack, *arguments) as process:
        return process.wait(within=30), process.log


@contextlib.contextmanager
def stream(worker: Worker) -> Iterator[None]:
    """Keep a stream running; the client leaves at the end of the context."""
    address = urllib.parse.urlsplit(worker.request_url).netloc
    client = HTTPConnection(address, timeout=30)
    body = {"model": "mock", "prompt": "x", "stream": True, "max_tokens": 10_000}
    client.request("POST", "/v1/completions", json.dumps(body))
    response = client.getresponse()
    assert response.status == 200
    response.readline()
    try:
        yield
    finally:
        response.close()
        client.close()


def complete(url: str) -> Answer:
    return http(f"{url}/v1/completions", {"model": "mock", "prompt": "x", "max_tokens": 1})


def state(stack: Stack) -> State:
    (record,) = (r for r in records(stack) if r.role is Role.WORKER)
    assert isinstance(record.state, State)
    return record.state


def records(stack: Stack) -> frozenset[Record]:
    return asyncio.run(FileDiscovery(stack.discovery).records())


def test_a_drained_worker_finishes_its_requests_and_returns(stack: Stack, worker: Worker) -> None:
    with contextlib.ExitStack() as client, contextlib.ExitStack() as command:
        client.enter_context(stream(worker))
        draining = command.enter_context(drain(stack, NAME))
        draining.wait_for(f"worker {ID} is out of traffic; running requests: 1", within=10)
        health = http(f"{worker.system_url}/health")
        assert health.status == 503
        assert health.json()["state"] == "draining"
        assert health.json()["reason"] == "taken out of traffic by dyno drain"
        assert state(stack) is State.DRAINING
        refused = complete(worker.request_url)
        assert refused.status == 503
        assert refused.headers["Retry-After"]
        assert complete(stack.frontend_url).status == 503
        assert http(f"{worker.system_url}/live").status == 200
        assert "dynamo_component_uptime_seconds" in worker.page()
        assert draining.running
        client.close()
        assert draining.wait(within=10) == 0
        assert f"put the worker back with: dyno drain {ID} --undo" in draining.log
    code, output = result(stack, NAME)
    assert (code, "was out of traffic already" in output) == (0, True)
    code, output = result(stack, NAME, "--undo")
    assert (code, "is ready, and receives requests again" in output) == (0, True)
    assert http(f"{worker.system_url}/health").status == 200
    assert state(stack) is State.READY
    eventually(lambda: complete(stack.frontend_url).status == 200, within=5, what="served")
    code, output = result(stack, NAME, "--undo")
    assert (code, "was not out of traffic; its state is ready" in output) == (0, True)


def test_requests_that_still_run_at_the_timeout_are_an_error(stack: Stack, worker: Worker) -> None:
    with stream(worker):
        code, output = result(stack, ID[:5], "--timeout", "0.5")
        assert code == 1
        assert "have not finished after 0.5 s: 1" in output
        assert state(stack) is State.DRAINING
        code, output = result(stack, ID[:5], "--timeout", "0")
        assert (code, "error" in output) == (0, False)
        assert result(stack, ID, "--undo")[0] == 0


def test_a_drain_that_is_undone_meanwhile_is_an_error(stack: Stack, worker: Worker) -> None:
    with stream(worker), drain(stack, NAME) as draining:
        draining.wait_for("running requests: 1", within=10)
        assert result(stack, NAME, "--undo")[0] == 0
        assert draining.wait(within=10) == 1
        assert "put back into traffic meanwhile" in draining.log


def test_a_drained_worker_stays_drained_while_its_engine_is_restarted(
    stack: Stack, worker: Worker
) -> None:
    assert result(stack, NAME)[0] == 0
    worker.engine.kill()
    worker.process.wait_for(r"starting it again(.|\n)*ready after", within=20)
    assert state(stack) is State.DRAINING
    assert http(f"{worker.system_url}/health").json()["state"] == "draining"
    assert result(stack, NAME, "--undo")[0] == 0
    assert http(f"{worker.system_url}/health").status == 200


def test_a_worker_that_is_killed_or_ends_meanwhile_is_an_error(stack: Stack) -> None:
    with stack.run_worker(*FLAGS, "--worker-id", "7") as worker, contextlib.ExitStack() as clients:
        worker.wait_until_ready()
        clients.enter_context(stream(worker))
        draining = clients.enter_context(drain(stack, "7"))
        draining.wait_for("running requests: 1", within=10)
        worker.process.signal(signal.SIGTERM)
        worker.process.wait_for("SIGTERM: ending", within=5)
        code, output = result(stack, "7", "--undo")
        assert (code, "is ending: it cannot be put back" in output) == (1, True)
        code, output = result(stack, "7", "--timeout", "0.5")
        assert (code, "is ending, and its running requests have not finished" in output) == (
            1,
            True,
        )
        assert "--undo" not in output
        assert draining.running
        worker.process.signal(signal.SIGKILL)
        assert draining.wait(within=10) == 1
        assert "no longer answers" in draining.log
        assert "Traceback" not in draining.log


def test_an_unknown_worker_is_an_error_that_names_the_known_ones(
    stack: Stack, worker: Worker
) -> None:
    code, output = result(stack, "nowhere")
    assert code == 1
    assert output == (
        f"error: no worker has the number or name 'nowhere': the workers are {ID} (ready, mock)\n"
    )


async def test_a_worker_of_another_machine_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "discovery"
    record = Record(role=Role.WORKER, id=9, namespace="n", component="c", state=State.READY)
    async with FileDiscovery(directory).register(record):
        flags = ("drain", "9", "--discovery-directory", str(directory))
        command = [PYTHON, "-m", "dynamometer.cli", *flags]
        with running(command, tmp_path / "log", {}) as process:
            assert await asyncio.to_thread(process.wait, within=30) == 1
            assert "cannot be reached at" in process.log
            assert "run this command on the machine of the worker" in process.log
            assert process.log.count("\n") == 1


async def test_a_worker_that_is_stopped_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamometer.drain._ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("dynamometer.drain.socket_path", lambda _: tmp_path / "control")
    directory = tmp_path / "discovery"
    record = Record(role=Role.WORKER, id=9, namespace="n", component="c", state=State.READY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        async with FileDiscovery(directory).register(record):
            with pytest.raises(DrainError, match=r"has not answered within 0\.2 s: it is"):
                await _run("9", directory, undo=False, timeout=None)


def of(id_: int, role: Role = Role.WORKER) -> Record:
    return Record(role=role, id=id_, namespace="n", component="c", state=State.READY)


FIRST, SECOND = 0x3F2A << 48, 0x3F2A8 << 44
WORKERS = (of(FIRST), of(SECOND), of(7), of(parse_id("pod-1")), of(5, Role.FRONTEND))


@pytest.mark.parametrize(
    ("instance", "number"),
    [
        ("3f2a0", FIRST),
        ("3F2A8", SECOND),
        ("0x3f2a0", FIRST),
        ("3f2a000000000000", FIRST),
        (str(SECOND), SECOND),
        ("7", 7),
        ("0000000000000007", 7),
        ("0000", 7),
        ("pod-1", parse_id("pod-1")),
    ],
)
def test_a_worker_is_named_by_its_number_its_beginning_or_its_name(
    instance: str, number: int
) -> None:
    assert find(WORKERS, instance).id == number


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("3f2a", r"beginning of several workers: 3f2a0+ \(ready\), 3f2a80+ \(ready\)"),
        (
            "3f2",
            "no worker has the number or name '3f2': the workers are 0",
        ),  # too short, may be a mistake
        ("abcd", "no worker has the number or name 'abcd'"),
        ("", "no worker has the number or name ''"),
        ("$(POD)", "no worker has the number or name"),
        ("pod-2", "no worker has the number or name 'pod-2'"),
        ("5", r"'5' is not a worker .role: frontend.: only workers can be taken out of traffic"),
    ],
)
def test_a_name_of_no_worker_or_of_several_is_an_error(instance: str, message: str) -> None:
    with pytest.raises(DrainError, match=message):
        find(WORKERS, instance)


def test_only_the_first_node_of_an_engine_can_be_drained() -> None:
    first, second, other = (
        Record(
            role=Role.WORKER, id=number, namespace="n", component="c", models=("m",),
            nodes=2, node_rank=rank, group=group, state=State.READY,
        )
        for number, rank, group in ((0xAAAA << 48, 0, "g"), (0xBBBB << 48, 1, "g"), (7, 0, "h"))
    )  # fmt: skip
    assert find([first, second, other], "aaaa") == first
    message = (
        "worker bbbb000000000000 is node 1 of 2 of an engine; only the worker of node 0 gets "
        "requests: drain that one, aaaa000000000000 (ready, m)"
    )
    with pytest.raises(DrainError, match=re.escape(message)):
        find([first, second, other, replace(first, id=8, namespace="other")], "bbbb")
    with pytest.raises(DrainError, match=r"only the worker of node 0 gets requests$"):
        find([second, other], "bbbb")


def test_an_error_lists_few_of_many_workers() -> None:
    with pytest.raises(DrainError, match=r"\), and 90 more$"):
        find([of(number) for number in range(1, 101)], "nowhere")


def test_without_workers_the_error_names_the_directory() -> None:
    with pytest.raises(DrainError, match=r"no workers in /some/where .*DYN_FILE_KV"):
        find((), "7", Path("/some/where"))
    with pytest.raises(DrainError, match="discovery shows no workers in this user's directory"):
        find((), "7")
