"""Deaths and restarts of a simulated engine; tests/main_job/test_restarts.py has the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import time
import urllib.parse
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from dynamometer.runtime.discovery.file import FileDiscovery
from onlooker import Onlooker, check_totals, total
from stack import Answer, Stack, Worker, eventually, http

FLAGS = ("--engine", "mocker", "--model", "mock", "--enable-metrics")
CHAT = {"model": "mock", "prompt": "x", "max_tokens": 1}


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path, tmp_path, tmp_path / "discovery")


def complete(worker: Worker) -> Answer:
    return http(f"{worker.request_url}/v1/completions", CHAT)


def states(stack: Stack) -> list[str]:
    """Return the states of the workers in discovery."""
    return [record.state for record in asyncio.run(FileDiscovery(stack.discovery).records())]


def metrics_files(worker: Worker) -> set[str]:
    """Return the pids in the names of the engine's files."""
    directory = Path(worker.engine.environ()["PROMETHEUS_MULTIPROC_DIR"])
    return {path.stem.rpartition("_")[2] for path in directory.rglob("*.db")}


@contextlib.contextmanager
def taken(url: str) -> Iterator[None]:
    """Listen at an address as another program would; wait until the address is free."""
    address = urllib.parse.urlsplit(url)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for _ in range(200):
            with contextlib.suppress(OSError):
                other.bind((address.hostname, address.port))
                other.listen()
                break
            time.sleep(0.01)
        yield


def test_the_page_goes_on_when_an_engine_dies_and_another_program_takes_its_port(
    stack: Stack,
) -> None:
    with stack.run_worker(*FLAGS) as worker:
        worker.wait_until_ready()
        with Onlooker(worker).looking() as onlooker:
            assert [complete(worker).status for _ in range(3)] == [200] * 3
            eventually(
                lambda: onlooker.total("sglang:num_requests_total") == 3, within=5, what="three"
            )
            engine, url, killed = worker.engine, worker.engine_url, time.monotonic()
            dead = {str(one.pid) for one in [engine, *engine.children()]}
            assert dead & metrics_files(worker)
            engine.kill()
            with taken(url):
                eventually(lambda: states(stack) == ["restarting"], within=1, what="the record")
                refused = complete(worker)
                assert refused.status == 503
                assert refused.headers["Retry-After"]
                worker.wait_until_ready()
                assert onlooker.not_ready_after(killed) < 1
                assert states(stack) == ["ready"]
                assert worker.engine_url != url
                assert complete(worker).status == 200
                eventually(
                    lambda: onlooker.total("sglang:num_requests_total") == 4, within=5, what="four"
                )
            assert not dead & metrics_files(worker)
            pages = onlooker.pages_since(killed)
            assert any(total(page, "sglang:token_usage") < 0 for page in pages)
        assert not onlooker.faults
        check_totals(onlooker.looks)
        page = onlooker.looks[-1].page.decode()
        assert len(set(re.findall(r'worker_id="(\w+)"', page))) == 1
        assert total(page.encode(), "dynamometer_engine_restarts_total") == 1
        assert "the engine ended: it was killed by signal 9 (SIGKILL)" in worker.process.log


def test_a_stream_ends_with_an_error_when_its_engine_dies(stack: Stack) -> None:
    with stack.run_frontend() as (_, frontend), stack.run_worker(*FLAGS) as worker:
        worker.wait_until_ready()
        client = HTTPConnection(urllib.parse.urlsplit(frontend).netloc, timeout=30)
        client.request(
            "POST", "/v1/completions", json.dumps({**CHAT, "stream": True, "max_tokens": 1000})
        )
        with contextlib.closing(client), client.getresponse() as response:
            response.readline()
            worker.engine.kill()
            assert b'"code": "engine_error"' in response.read()


def test_a_restarted_prefill_engine_has_another_bootstrap_address(stack: Stack) -> None:
    def address() -> str | None:
        (record,) = asyncio.run(FileDiscovery(stack.discovery).records())
        return record.bootstrap

    with stack.run_worker(*FLAGS, "--disaggregation-mode", "prefill") as worker:
        first = worker.wait_until_ready().engine_url
        assert address() == first.removeprefix("http://")
        worker.engine.kill()
        eventually(lambda: states(stack) == ["restarting"], within=2, what="the record")
        eventually(lambda: states(stack) == ["ready"], within=20, what="the restart")
        assert worker.engine_url != first
        assert address() == worker.engine_url.removeprefix("http://")


def test_a_worker_without_restarts_ends_with_its_engine(stack: Stack) -> None:
    with stack.run_worker(*FLAGS, "--restart-limit", "0") as worker:
        worker.wait_until_ready().engine.kill()
        assert worker.process.wait(within=10) == 1
        last = worker.process.log.strip().splitlines()[-1]
        reason = "the engine ended: it was killed by signal 9 (SIGKILL)"
        assert last == f"error: {reason} (--restart-limit 0)"


def test_an_engine_that_dies_again_and_again_is_given_up(stack: Stack) -> None:
    with stack.run_worker(*FLAGS, "--restart-limit", "1") as worker:
        worker.wait_until_ready().engine.kill()
        eventually(lambda: not worker.ready(), within=1, what="health")
        worker.process.wait_for("starting it again after 1 s", within=5)
        worker.wait_until_ready().engine.kill()
        assert worker.process.wait(within=10) == 1
        last = worker.process.log.strip().splitlines()[-1]
        assert "signal 9" in last
        given_up = "it ended 2 times, and was not ready for 10 minutes between any two of these"
        assert f"{given_up} ends (--restart-limit)" in last


def test_an_engine_that_dies_while_it_restarts_is_started_again(stack: Stack) -> None:
    with stack.run_worker(*FLAGS) as worker:
        worker.wait_until_ready().engine.kill()
        eventually(
            lambda: worker.process.log.count("engine started") == 2, within=10, what="restart"
        )
        worker.engine.kill()
        worker.process.wait_for("starting it again after 2 s", within=5)
        worker.wait_until_ready()
        assert complete(worker).status == 200
        engine = worker.engine
        temporary = Path(engine.environ()["TMPDIR"])
        assert list(temporary.parent.iterdir()) == [temporary]  # no older ones
        assert metrics_files(worker) <= {str(one.pid) for one in worker.process.descendants()}


def test_a_worker_that_waits_for_a_restart_ends_at_once(stack: Stack) -> None:
    with stack.run_worker(*FLAGS) as worker:
        worker.wait_until_ready().engine.kill()
        worker.process.wait_for("starting it again", within=5)
        worker.process.signal(signal.SIGTERM)
        assert worker.process.wait(within=5) == 0
        assert worker.process.log.count("engine started") == 1


def test_a_frozen_engine_is_restarted_after_the_time_of_hang_restart(stack: Stack) -> None:
    times = ("--hang-timeout", "1", "--hang-restart", "2")
    with stack.run_worker(
        *FLAGS, *times, DYN_CANARY_WAIT_TIME="0.5", DYN_HEALTH_CHECK_REQUEST_TIMEOUT="0.5"
    ) as worker:
        worker.wait_until_ready()
        frozen = worker.engine
        frozen.suspend()
        worker.process.wait_for(
            r"the engine was unresponsive for 2 s \(--hang-restart\)", within=20
        )
        worker.wait_until_ready()
        assert not frozen.is_running()
        assert "restarts_total{" in worker.page()
        hung = [line for line in worker.page().splitlines() if 'reason="hang"' in line]
        assert hung[0].endswith(" 1.0")
