"""The nodes of one engine, as the worker of one node sees the others in discovery.

An engine on several nodes runs on all of them or on none. Each run of it has a number, the epoch,
which rises at each restart. A node whose engine ends raises its epoch. A node that sees a higher
epoch than its own, or from which a node of its own epoch disappears, has lost its run: its worker
ends its part of the engine, and starts it again with the highest epoch. Nodes with equal epochs do
nothing, so that all nodes restart once, however many of them notice the end by themselves.

A node that was never there is not lost: the engines of a new run wait for each other. Nothing here
does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dynamometer.names import labels
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import Json, Record, State

# A process that has left these states is never in them again; a drain hides both.
_FIRST_STATES = (State.STARTING, State.DRAINING)


class Group:
    """The nodes of one engine, and the number of the present run. The event loop owns it.

    Attributes:
        epoch: the number of this node's run, and between two runs that of the next.
        loss: the reason why the run cannot go on, for users; empty if it can.
    """

    def __init__(self, own: Record) -> None:
        """Start without other nodes.

        Args:
            own: the record of the worker of this node.
        """
        self._own = own
        self._others: Mapping[int, Record] = {}
        self._joined: dict[int, Record] = {}  # last seen in the present run
        self.epoch = own.epoch
        self.loss = ""

    @property
    def leader(self) -> Record | None:
        """The worker of node 0, which serves the requests; None while it is unknown."""
        found = [record for record in self._others.values() if record.node_rank == 0]
        return max(found, key=lambda record: record.epoch, default=None)

    @property
    def missing(self) -> Sequence[int]:
        """The numbers of the nodes whose workers are not in discovery."""
        seen = {self._own.node_rank, *(record.node_rank for record in self._others.values())}
        return [rank for rank in range(self._own.nodes) if rank not in seen]

    def update(self, records: Iterable[Record]) -> None:
        """Replace the other nodes by those in `records`, which are all live processes."""
        own = self._own
        self._others = {
            record.id: record
            for record in records
            if record.shares_engine(own) and record.node_rank != own.node_rank
        }
        self.loss = self.loss or self._find_loss()
        for record in self._others.values():
            if record.epoch == self.epoch and record.state is not State.FAILED:
                self._joined[record.id] = record

    def start_run(self) -> None:
        """Start a run with the highest epoch of all nodes."""
        self.epoch = max([self.epoch, *(record.epoch for record in self._others.values())])
        self.loss = ""
        self._joined = {}
        self.update(self._others.values())

    def end_run(self) -> None:
        """Raise the epoch, because this node's part of the engine has ended."""
        self.epoch = max([self.epoch + 1, *(record.epoch for record in self._others.values())])

    def report(self) -> dict[str, Json]:
        """Return the nodes for `/health`; docs/two-nodes.md describes the members."""
        own = self._own
        leader = own if own.node_rank == 0 else self.leader
        return {
            labels.NODE_RANK: own.node_rank,
            labels.NODES: own.nodes,
            "epoch": self.epoch,
            "leader": None if leader is None else hexadecimal(leader.id),
            "missing": list(self.missing),
            "others": [
                {
                    labels.NODE_RANK: record.node_rank,
                    labels.WORKER_ID: hexadecimal(record.id),
                    "state": record.state,
                    "epoch": record.epoch,
                }
                for record in sorted(self._others.values(), key=lambda r: (r.node_rank, r.id))
            ],
        }

    def _find_loss(self) -> str:
        for record in self._others.values():
            if record.epoch > self.epoch:
                return _reason(record, "its engine ended")
        for before in self._joined.values():
            now = self._others.get(before.id)
            if now is None:
                return _reason(before, "its worker ended")
            if now.state is State.STARTING and before.state not in _FIRST_STATES:
                return _reason(before, "its worker was restarted")
        return ""


def _reason(lost: Record, cause: str) -> str:
    node = f"node {lost.node_rank} (worker {hexadecimal(lost.id)})"
    return f"the engine cannot run without {node}: {cause}"
