"""Which instance a request goes to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from dynamometer.engines import kinds
from dynamometer.runtime.record import Json, Record, Role, State


class RouterMode(StrEnum):
    """How one is chosen among those that serve the model."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_LOADED = "least-loaded"


class Instances:
    """The workers that discovery shows, and the requests that each has: from here, and others'."""

    def __init__(self, mode: RouterMode, namespace: str | None) -> None:
        """No worker is known yet.

        Args:
            mode: how to choose.
            namespace: the only one served; None: all.
        """
        self._mode = mode
        self._namespace = namespace
        self._workers: tuple[Record, ...] = ()
        self._turn: Counter[str] = Counter()
        self._load: Counter[int] = Counter()
        self._others: dict[int, float] = {}
        self._seen: set[str] = set()

    def update(self, records: Iterable[Record]) -> None:
        """Take over what discovery shows now."""
        self._workers = tuple(
            sorted(
                (
                    record
                    for record in records
                    if record.role is Role.WORKER
                    and record.unusable_reason is None
                    and kinds.of(record.engine) is not None
                    and self._namespace in (None, record.namespace)
                ),
                key=lambda record: record.id,
            )
        )
        self._seen.update(self.models())
        known = {worker.id for worker in self._workers}
        self._others = {id_: load for id_, load in self._others.items() if id_ in known}

    def report(self, id_: int, others: float) -> None:
        """Take over how many requests an instance has that are not from here.

        Args:
            id_: of the instance.
            others: as of its last report; 0 where there is none.
        """
        if others:
            self._others[id_] = others
        else:
            self._others.pop(id_, None)

    def in_flight(self, id_: int) -> int:
        """How many requests are in flight from here to an instance."""
        return self._load[id_]

    @property
    def ready(self) -> tuple[Record, ...]:
        """The workers that requests may go to, by their ids."""
        return tuple(w for w in self._workers if w.state is State.READY and w.request_url)

    def models(self) -> dict[str, Json]:
        """The models that are served now, each with what its engine says of it."""
        return {
            model: worker.model_info.get(model, {"id": model, "object": "model"})
            for worker in self.ready
            for model in worker.models
        }

    def was_served(self, model: str) -> bool:
        """Whether `model` has been registered since this frontend started."""
        return model in self._seen

    def choose(self, model: str, *, without: Collection[int] = ()) -> Record | None:
        """An instance that serves `model`, or None.

        Args:
            model: a registered name.
            without: ids of instances that were tried already.
        """
        able = [w for w in self.ready if model in w.models and w.id not in without]
        if not able:
            return None
        if self._mode is RouterMode.RANDOM:
            return random.choice(able)  # noqa: S311  # no secret
        turn = self._turn[model]
        self._turn[model] += 1
        if self._mode is RouterMode.ROUND_ROBIN:
            return able[turn % len(able)]
        loads = [self._load[worker.id] + self._others.get(worker.id, 0.0) for worker in able]
        least = min(loads)
        idle = [worker for worker, load in zip(able, loads, strict=True) if load == least]
        return idle[turn % len(idle)]

    @contextmanager
    def carrying(self, instance: Record) -> Iterator[None]:
        """Count a request in flight to `instance` while the context is open."""
        self._load[instance.id] += 1
        try:
            yield
        finally:
            self._load[instance.id] -= 1
            if not self._load[instance.id]:
                del self._load[instance.id]
