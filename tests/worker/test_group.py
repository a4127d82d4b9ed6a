"""The loss of a node: the records of all nodes in, the decision of each node out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynamometer.runtime.record import Record, Role, State
from dynamometer.worker.group import Group

STARTING, READY, UNRESPONSIVE = State.STARTING, State.READY, State.UNRESPONSIVE
RESTARTING, DRAINING, FAILED = State.RESTARTING, State.DRAINING, State.FAILED
LOST = "the engine cannot run without node 1 (worker 000000000000000b): "


def node(rank: int, *, id_: int = 0, state: State = READY, epoch: int = 0) -> Record:
    """Return the record of a node's worker: id 10 for node 0, 11 for node 1."""
    return Record(
        role=Role.WORKER,
        id=id_ or 10 + rank,
        namespace="n",
        component="c",
        nodes=2,
        node_rank=rank,
        group="g",
        state=state,
        epoch=epoch,
    )


def running(*seen: Record, epoch: int = 0) -> Group:
    """Return the group as node 0 sees it, in a run in which it has seen these records."""
    group = Group(node(0))
    group.epoch = epoch
    group.start_run()
    group.update(seen)
    assert not group.loss
    return group


@pytest.mark.parametrize(
    ("before", "now", "cause"),
    [
        # The other node was never there: the engines of a new run wait for each other.
        ([], [], ""),
        ([], [node(1, state=STARTING)], ""),
        ([], [node(1, epoch=3)], "its engine ended"),
        # It lives, whatever its state.
        *(([node(1)], [node(1, state=s)], "") for s in (READY, UNRESPONSIVE, DRAINING)),
        ([node(1, state=STARTING)], [node(1)], ""),
        ([node(1, state=STARTING)], [node(1, state=DRAINING)], ""),
        ([node(1, state=DRAINING)], [node(1)], ""),
        ([node(1, state=DRAINING)], [node(1, state=STARTING)], ""),
        # Its engine ended.
        ([node(1)], [node(1, state=RESTARTING, epoch=1)], "its engine ended"),
        ([node(1)], [node(1, state=FAILED, epoch=1)], "its engine ended"),
        ([node(1, state=STARTING)], [node(1, state=FAILED, epoch=1)], "its engine ended"),
        # Its worker ended, by a signal or killed.
        ([node(1)], [], "its worker ended"),
        ([node(1, state=STARTING)], [], "its worker ended"),
        ([node(1, state=DRAINING)], [], "its worker ended"),
        # Another worker has its place, or its number (--worker-id).
        ([node(1)], [node(1, id_=12, state=STARTING)], "its worker ended"),
        ([node(1)], [node(1, state=STARTING)], "its worker was restarted"),
        # Engines that have no node in common.
        ([replace(node(1), group="other")], [], ""),
        ([replace(node(1), namespace="other")], [], ""),
        ([node(1)], [node(1), replace(node(1, id_=12, epoch=5), namespace="other")], ""),
        ([node(1)], [node(1), replace(node(1, id_=12, epoch=5), group="other")], ""),
        # A second worker of the same node ends with an error of its own.
        ([node(1), node(0, id_=12)], [node(1)], ""),
    ],
)
def test_loss(before: list[Record], now: list[Record], cause: str) -> None:
    group = running(*before)
    group.update(now)
    assert group.loss == (LOST + cause if cause else "")


def test_a_loss_stays_until_the_next_run() -> None:
    group = running(node(1))
    group.update([])
    group.update([node(1)])
    assert group.loss
    group.end_run()
    group.start_run()
    assert not group.loss


def test_a_node_that_left_an_earlier_run_is_not_lost_again() -> None:
    group = running(node(1))
    group.update([node(1, state=FAILED, epoch=1)])
    group.end_run()
    group.start_run()  # while the worker of the failed engine still ends
    group.update([])
    assert (group.loss, group.epoch) == ("", 1)


def test_a_node_that_was_ending_during_the_loss_is_not_lost_again() -> None:
    """The leader's clean end also ends the other node's engine, before its record disappears."""
    group = running(node(1))
    group.update([node(1, state=DRAINING)])
    group.end_run()
    group.start_run()
    group.update([node(1, state=DRAINING)])
    group.update([])
    assert (group.loss, group.epoch) == ("", 1)


def test_a_new_worker_joins_the_run_of_the_others() -> None:
    group = Group(node(0))
    group.update([node(1, state=RESTARTING, epoch=4)])
    group.start_run()
    assert (group.epoch, group.loss) == (4, "")


class Cluster:
    """Nodes that see each other's records, and restart as workers do."""

    def __init__(self, nodes: int) -> None:
        self.records = {rank: node(rank) for rank in range(nodes)}
        self.groups = [Group(record) for record in self.records.values()]
        self.starts = [0] * nodes
        for rank in range(nodes):
            self._start(rank)

    def _start(self, rank: int) -> None:
        self.groups[rank].start_run()
        self.starts[rank] += 1
        self.records[rank] = replace(self.records[rank], state=READY, epoch=self.groups[rank].epoch)

    def end(self, rank: int) -> None:
        """End the engine of a node, whose worker shows this in its record."""
        self.groups[rank].end_run()
        self.records[rank] = replace(
            self.records[rank], state=RESTARTING, epoch=self.groups[rank].epoch
        )

    def restart(self) -> None:
        """Start the engines that have ended."""
        for rank, record in self.records.items():
            if record.state is RESTARTING:
                self._start(rank)

    def look(self, *ranks: int) -> None:
        """Let nodes read discovery, and end the engines that have lost their run."""
        for rank in ranks or self.records:
            self.groups[rank].update(self.records.values())
            if self.groups[rank].loss and self.records[rank].state is READY:
                self.end(rank)

    def settle(self) -> None:
        for _ in range(5):
            self.look()
            self.restart()


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("ends", [(0,), (1,), (0, 1), (1, 0)])
@pytest.mark.parametrize("early", [(), (0,), (1,)])
def test_all_nodes_restart_once(nodes: int, ends: tuple[int, ...], early: tuple[int, ...]) -> None:
    """Engines end at once or after each other; some nodes look, or restart, before the others."""
    cluster = Cluster(nodes)
    cluster.settle()
    assert cluster.starts == [1] * nodes
    for rank in ends:
        if cluster.records[rank].state is READY:
            cluster.end(rank)
        if early:
            cluster.look(*early)
    if early:
        cluster.restart()
    cluster.settle()
    assert cluster.starts == [2] * nodes
    assert {group.epoch for group in cluster.groups} == {1}
    assert not any(group.loss for group in cluster.groups)


def test_each_further_end_restarts_all_nodes_again() -> None:
    cluster = Cluster(2)
    for epoch in range(1, 4):
        cluster.end(epoch % 2)
        cluster.settle()
        assert {group.epoch for group in cluster.groups} == {epoch}
    assert cluster.starts == [4, 4]


def test_a_restart_while_the_other_node_waits_is_one_restart() -> None:
    cluster = Cluster(2)
    cluster.settle()
    cluster.end(0)
    cluster.look(1)  # which is ending now, and waits for its restart
    cluster.restart()
    cluster.settle()
    assert cluster.starts == [2, 2]


def test_the_report_names_the_leader_and_the_other_nodes() -> None:
    follower = Group(node(1))
    assert follower.report()["leader"] is None
    assert follower.report()["missing"] == [0]
    follower.update([node(0, state=UNRESPONSIVE)])
    assert follower.report() == {
        "node_rank": 1,
        "nodes": 2,
        "epoch": 0,
        "leader": "000000000000000a",
        "missing": [],
        "others": [
            {
                "node_rank": 0,
                "worker_id": "000000000000000a",
                "state": "unresponsive",
                "epoch": 0,
            }
        ],
    }
    assert running(node(1)).report()["leader"] == "000000000000000a"


def test_the_leader_is_that_of_the_latest_run() -> None:
    follower = Group(node(1))
    follower.update([node(0, epoch=1), node(0, id_=12, epoch=2)])
    assert follower.leader is not None
    assert follower.leader.id == 12
