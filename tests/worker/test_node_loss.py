"""A simulated engine on two nodes, of which one is lost; tests/nodes has the real engine."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.record import Record, State
from processes import PYTHON, refusing_port, running
from stack import Stack, Worker, eventually, http

pytestmark = pytest.mark.slow

CHAT = {"model": "mock", "prompt": "x", "max_tokens": 1}


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path, tmp_path, tmp_path / "discovery")


@contextlib.contextmanager
def node(stack: Stack, rank: int, *flags: str) -> Iterator[Worker]:
    address = f"127.0.0.1:{refusing_port()}"  # the simulated engines do not use it
    nodes = ("--nnodes", "2", "--node-rank", str(rank), "--dist-init-addr", address)
    model = ("--engine", "mocker", "--model", "mock", "--enable-metrics")
    with stack.run_worker(*model, *nodes, *flags) as worker:
        yield worker


@contextlib.contextmanager
def both(stack: Stack, *flags: str) -> Iterator[list[Worker]]:
    with node(stack, 0, *flags) as leader, node(stack, 1, *flags) as follower:
        workers = [leader.wait_until_ready(), follower.wait_until_ready()]
        wait_for_run(stack, 0)
        yield workers


def records(stack: Stack) -> list[Record]:
    """Return the records of the nodes, by rank."""
    found = asyncio.run(FileDiscovery(stack.discovery).records())
    nodes = [record for record in found if record.group]
    return sorted(nodes, key=lambda record: record.node_rank)


def wait_for_run(stack: Stack, epoch: int) -> None:
    """Wait until both nodes are ready in a run, and know this of each other."""

    def complete() -> bool:
        runs = [(record.state, record.epoch) for record in records(stack)]
        return runs == [(State.READY, epoch)] * 2 and all(
            group(f"{record.system_url}")["others"] for record in records(stack)
        )

    eventually(complete, within=20, what=f"run {epoch} on both nodes")


def total(worker: Worker, *parts: str) -> float:
    """Return the sum of the samples on a page whose lines have all these parts."""
    lines = [line for line in worker.page().splitlines() if all(part in line for part in parts)]
    return sum(float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#"))


def group(system_url: str) -> dict[str, object]:
    members = http(f"{system_url}/health").json()["group"]
    assert isinstance(members, dict)
    return members


def test_a_worker_names_its_side_and_its_node_and_the_missing_node(stack: Stack) -> None:
    side = ("--disaggregation-mode", "prefill")
    with node(stack, 0, *side) as leader:
        leader.wait_until_ready()
        assert group(leader.system_url)["missing"] == [1]
        leader.process.wait_for(r"serving mock \(prefill, node 0 of 2\)", within=10)
        with node(stack, 1, *side) as follower:
            follower.process.wait_for(r"running node 1 of 2 \(prefill\)", within=10)
            eventually(
                lambda: group(leader.system_url)["missing"] == [], within=10, what="node 1 is seen"
            )


def test_a_follower_serves_no_requests_and_names_its_leader(stack: Stack) -> None:
    with stack.run_frontend() as (_, url), both(stack) as (leader, follower):
        first, second = records(stack)
        assert (first.request_url, second.request_url) == (leader.request_url, None)
        assert (first.nodes, second.nodes, second.node_rank) == (2, 2, 1)
        assert first.group == second.group
        assert second.models == ("mock",)
        assert group(follower.system_url)["leader"] == f"{first.id:016x}"
        assert group(leader.system_url)["leader"] == f"{first.id:016x}"
        for _ in range(3):
            assert http(f"{url}/v1/completions", CHAT).status == 200
        assert total(leader, "dynamo_component_requests_total{") == 3
        assert total(follower, "dynamometer_engine_state{", 'state="ready"') == 1
        assert "running node 1 of 2" in follower.process.log
        # Its ranks repeat those of node 0.
        series = [line for line in follower.page().splitlines() if line.startswith("sglang:")]
        assert series
        assert all(',node_rank="1"' in line for line in series)
        assert "dynamometer_engine_running_requests" not in follower.page()
        assert "dynamometer_engine_running_requests{" in leader.page()
        own = [line for line in leader.page().splitlines() if line.startswith("sglang:")]
        assert not any("node_rank" in line for line in own)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_nodes_restart_once_when_the_engine_of_one_dies(stack: Stack, rank: int) -> None:
    with both(stack) as workers:
        workers[rank].engine.kill()
        wait_for_run(stack, 1)
        other = workers[1 - rank]
        lost = f"the engine cannot run without node {rank} (worker {records(stack)[rank].id:016x})"
        assert f"{lost}: its engine ended; starting it again after 1 s" in other.process.log
        assert [one.process.log.count("engine started") for one in workers] == [2, 2]
        exit_ = http(f"{other.system_url}/health").json()["last_exit"]
        assert isinstance(exit_, dict)
        assert (exit_["cause"], exit_["code"]) == ("node_lost", None)
        assert total(other, "restarts_total{", 'reason="node_lost"') == 1
        assert http(f"{workers[0].request_url}/v1/completions", CHAT).status == 200


def test_all_nodes_restart_once_when_all_engines_die(stack: Stack) -> None:
    with both(stack) as workers:
        for worker in workers:
            worker.engine.kill()
        wait_for_run(stack, 1)
        assert [one.process.log.count("engine started") for one in workers] == [2, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_without_restarts_all_nodes_end_with_an_error(stack: Stack, rank: int) -> None:
    with both(stack, "--restart-limit", "0") as workers:
        ids = [record.id for record in records(stack)]
        workers[rank].engine.kill()
        assert [worker.process.wait(within=10) for worker in workers] == [1, 1]
        last = workers[1 - rank].process.log.strip().splitlines()[-1]
        lost = f"the engine cannot run without node {rank} (worker {ids[rank]:016x})"
        expected = rf"error: {re.escape(lost)}: its (engine|worker) ended \(--restart-limit 0\)"
        assert re.fullmatch(expected, last), last


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_new_worker_takes_the_place_of_one_that_ended(
    stack: Stack, rank: int, number: int
) -> None:
    with contextlib.ExitStack() as stack_of_workers:
        workers = [stack_of_workers.enter_context(node(stack, one)) for one in (0, 1)]
        for worker in workers:
            worker.wait_until_ready()
        wait_for_run(stack, 0)
        workers[rank].process.signal(number)
        workers[rank].process.wait(within=10)
        other = workers[1 - rank].process
        other.wait_for("its worker ended; starting it again", within=5)
        stack_of_workers.enter_context(node(stack, rank))
        wait_for_run(stack, 1)
        assert other.log.count("engine started") == 2


def test_a_drained_leader_is_not_lost(stack: Stack) -> None:
    with both(stack) as (leader, follower):
        first = records(stack)[0]
        command = ["drain", f"{first.id:016x}"]
        assert run_dyno(stack, *command) == 0
        eventually(
            lambda: '"draining"' in http(f"{follower.system_url}/health").body.decode(),
            within=5,
            what="the follower sees it",
        )
        assert run_dyno(stack, *command, "--undo") == 0
        wait_for_run(stack, 0)
        assert follower.process.log.count("engine started") == 1
        assert leader.process.log.count("engine started") == 1


def test_nodes_that_end_together_let_requests_finish(stack: Stack) -> None:
    with both(stack, "--tokens-per-second", "20") as workers:
        bodies: list[int] = []
        client = threading.Thread(
            target=lambda: bodies.append(
                http(f"{workers[0].request_url}/v1/completions", {**CHAT, "max_tokens": 60}).status
            )
        )
        client.start()
        eventually(
            lambda: (
                "dynamo_component_inflight_requests" in workers[0].page()
                and any(
                    line.startswith("dynamo_component_inflight_requests{") and line.endswith(" 1.0")
                    for line in workers[0].page().splitlines()
                )
            ),
            within=5,
            what="a running request",
        )
        for worker in reversed(workers):
            worker.process.signal(signal.SIGTERM)
        assert [worker.process.wait(within=20) for worker in workers] == [0, 0]
        client.join(5)
        assert bodies == [200]


def test_a_follower_ends_soon(stack: Stack) -> None:
    with both(stack) as (_, follower):
        follower.process.signal(signal.SIGINT)
        assert follower.process.wait(within=4) == 0
        assert not follower.process.descendants()


def run_dyno(stack: Stack, *arguments: str) -> int:
    log = stack.directory / f"dyno-{len(list(stack.directory.iterdir()))}.log"
    command = [PYTHON, "-m", "dynamometer.cli", *arguments]
    with running(command, log, stack.environment) as process:
        return process.wait(within=30)
