"""The real engine on two nodes: its pages, a hang, and the loss of each node."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from dynamometer.http.addresses import free_port
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.record import Record, State
from dynamometer.runtime.scrape_targets import target_groups
from stack import Stack, Worker, eventually, http

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MODEL = "two"
# The second end of the engine is the last.
RESTARTS = 1
RESTART_SECONDS = 90


@dataclass(frozen=True)
class Nodes:
    """The workers of node 0 and 1, and a frontend."""

    stack: Stack
    leader: Worker
    follower: Worker
    frontend: str

    def records(self) -> list[Record]:
        """Return the records of the workers in discovery, by rank."""
        found = asyncio.run(FileDiscovery(self.stack.discovery).records())
        return sorted((one for one in found if one.group), key=lambda one: one.node_rank)

    @property
    def epoch(self) -> int:
        """The number of the present run."""
        return self.records()[0].epoch

    def wait_for_run(self, epoch: int) -> None:
        """Wait until both nodes are ready in this run, and answer a request."""

        def complete() -> bool:
            runs = [(record.state, record.epoch) for record in self.records()]
            return runs == [(State.READY, epoch)] * 2

        log = f"{self.leader.process.log[-1500:]}\n{self.follower.process.log[-1500:]}"
        eventually(complete, within=RESTART_SECONDS, what=f"run {epoch}\n{log}")
        eventually(lambda: self.answer() == 200, within=5, what="the frontend knows it")

    def answer(self) -> int:
        body = {"model": MODEL, "prompt": "a b c", "max_tokens": 4}
        return http(f"{self.frontend}/v1/completions", body).status


def scheduler(worker: Worker) -> psutil.Process:
    for found in worker.engine.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if found.cmdline()[0].startswith("sglang::scheduler"):
                return found
    raise AssertionError("no scheduler")


def state(worker: Worker) -> tuple[object, object]:
    body = http(f"{worker.system_url}/health").json()
    return body["state"], body["reason"]


def engine_series(worker: Worker) -> list[str]:
    return [line for line in worker.page().splitlines() if line.startswith("sglang:")]


@pytest.fixture(scope="module")
def nodes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    directory = tmp_path_factory.mktemp("nodes")
    stack = Stack(directory, tiny_model, directory / "discovery")
    address = f"127.0.0.1:{free_port()}"
    flags = (
        *("--model", str(tiny_model), "--served-model-name", MODEL, "--enable-metrics"),
        *("--tp-size", "2", "--nnodes", "2", "--dist-init-addr", address),
        *("--hang-timeout", "4", "--restart-limit", str(RESTARTS)),
    )
    with (
        stack.run_frontend() as (_, url),
        stack.run_worker(*flags, "--node-rank", "0", DYN_CANARY_WAIT_TIME="1") as leader,
        stack.run_worker(*flags, "--node-rank", "1") as follower,
    ):
        found = Nodes(stack, leader, follower, url)
        found.wait_for_run(0)
        yield found


def test_each_node_has_a_page_with_the_series_of_its_ranks(nodes: Nodes) -> None:
    for worker, tp_rank in ((nodes.leader, 0), (nodes.follower, 1)):
        ranks = [line for line in engine_series(worker) if "tp_rank=" in line]
        assert ranks
        assert all(f'tp_rank="{tp_rank}"' in line for line in ranks)
    assert all('node_rank="1"' in line for line in engine_series(nodes.follower))
    assert not any("node_rank=" in line for line in engine_series(nodes.leader))
    assert "dynamometer_engine_running_requests{" in nodes.leader.page()
    assert "dynamometer_engine_running_requests{" not in nodes.follower.page()


def test_a_follower_is_a_target_and_gets_no_requests(nodes: Nodes) -> None:
    leader, follower = nodes.records()
    assert (leader.request_url, follower.request_url) == (nodes.leader.request_url, None)
    discovery = FileDiscovery(nodes.stack.discovery)
    groups = json.dumps(target_groups(asyncio.run(discovery.processes())))
    assert f'"{leader.page_address}"' in groups
    assert f'"{follower.page_address}"' in groups
    health = http(f"{nodes.follower.system_url}/health").json()
    assert health["status"] == "ready"
    group = health["group"]
    assert isinstance(group, dict)
    assert group["leader"] == f"{leader.id:016x}"
    assert [nodes.answer() for _ in range(4)] == [200] * 4


def test_a_stopped_process_of_a_follower_is_named(nodes: Nodes) -> None:
    stopped = scheduler(nodes.follower)
    stopped.suspend()
    try:
        eventually(
            lambda: (state(nodes.leader)[0], state(nodes.follower)[0]) == ("unresponsive",) * 2,
            within=30,
            what="both nodes unresponsive",
        )
        reason = state(nodes.follower)[1]
        assert reason == f"its process {stopped.cmdline()[0]} (pid {stopped.pid}) is stopped"
    finally:
        stopped.resume()
    nodes.wait_for_run(0)


def test_both_nodes_restart_when_the_engine_of_node_0_is_killed(nodes: Nodes) -> None:
    workers, epoch = (nodes.leader, nodes.follower), nodes.epoch + 1
    before = [worker.process.log.count("engine started") for worker in workers]
    nodes.leader.engine.kill()
    lost = r"cannot run without node 0 \(worker \w+\): its engine ended"
    nodes.follower.process.wait_for(lost, within=10)
    nodes.wait_for_run(epoch)
    after = [worker.process.log.count("engine started") for worker in workers]
    assert after == [count + 1 for count in before]


def test_both_workers_end_when_no_restart_is_left(nodes: Nodes) -> None:
    for epoch in range(nodes.epoch, RESTARTS):
        nodes.follower.engine.kill()
        nodes.wait_for_run(epoch + 1)
    scheduler(nodes.follower).kill()
    assert [one.process.wait(within=20) for one in (nodes.leader, nodes.follower)] == [1, 1]
    last = nodes.leader.process.log.strip().splitlines()[-1]
    assert "error: the engine cannot run without node 1" in last
