"""The router, which chooses a worker for each request."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from dynamometer.runtime.disaggregation import FitKey, fit_key
from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL, Record

# Longer than discovery needs to show the end of a worker.
AVOID_SECONDS: Final = 1.0


# A model, a mode, and the values that the workers fit.
_TurnKey = tuple[str, str, FitKey | None]


class RouterMode(StrEnum):
    """Ways to choose one of the workers that serve a model."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_LOADED = "least-loaded"


class Router:
    """Chooses among the workers of a fleet, and tracks the load of each worker.

    The load of a worker is the number of this frontend's requests in flight to it, plus the number
    of requests from others in the worker's last report. Of several processes of one frontend, each
    knows its own requests only. Since the report, each process assumes that the others have started
    and ended as many as itself, or all of them would choose the same worker until the next report.

    The prefill and the decode workers of a model are chosen separately, each by their own turns and
    loads: first a decode worker, then a prefill worker that fits it.

    A worker that has refused a request is avoided for `AVOID_SECONDS`, or until its record changes:
    it is chosen only if all other workers are avoided, too.

    Attributes:
        fleet: the workers.
    """

    def __init__(self, mode: RouterMode, fleet: Fleet, *, processes: int = 1) -> None:
        """Store the arguments, and follow the changes of `fleet`.

        Args:
            mode: the way to choose.
            fleet: the workers.
            processes: the number of processes of the frontend, each with a router of its own.
        """
        self.fleet = fleet
        self._mode = mode
        self._other_processes = processes - 1
        self._turns: dict[_TurnKey, int] = {}
        self._in_flight: Counter[int] = Counter()
        self._others: dict[int, float] = {}
        # This process's requests in flight at the last report, where other processes matter.
        self._reported: dict[int, int] = {}
        # The heap of each model and mode.
        self._by_load: dict[tuple[str, str], _ByLoad] = {}
        # The time at which the avoidance of a worker ends, by id; only of workers in the fleet.
        self._avoided: dict[int, float] = {}
        fleet.on_change(self._changed)

    def _changed(self, change: Change) -> None:
        for record in change.left:
            self._others.pop(record.id, None)
            self._reported.pop(record.id, None)
        for record in (*change.left, *change.changed):
            self._avoided.pop(record.id, None)
        for model in change.unserved:
            for mode in (AGGREGATED, PREFILL, DECODE):
                self._by_load.pop((model, mode), None)

    def report(self, id_: int, others: float | None) -> None:
        """Set the number of requests from others that an instance has.

        The report of an instance that has left the fleet is ignored.

        Args:
            id_: the id of the instance.
            others: the number in the instance's last report; None without a report.
        """
        if id_ not in self.fleet.records:
            return
        if others:
            self._others[id_] = others
        else:
            self._others.pop(id_, None)
        if others is None:
            self._reported.pop(id_, None)
        elif self._other_processes:
            self._reported[id_] = self._in_flight[id_]
        self._load_changed(id_)

    def in_flight(self, id_: int) -> int:
        """Return the number of this frontend's requests in flight to an instance."""
        return self._in_flight[id_]

    def avoid(self, instance: Record) -> None:
        """Avoid an instance that has refused a request, unless its record has changed since.

        Args:
            instance: the record with which the instance was chosen.
        """
        if self.fleet.records.get(instance.id) == instance:
            self._avoided[instance.id] = time.monotonic() + AVOID_SECONDS

    def choose(
        self,
        model: str,
        mode: str = AGGREGATED,
        *,
        without: Collection[int] = (),
        fitting: Record | None = None,
    ) -> Record | None:
        """Return a worker that serves `model`; None without such a worker.

        Args:
            model: a registered name.
            mode: the mode of the worker; `PREFILL` and `DECODE` for a model served in pairs.
            without: the ids of workers that must not be chosen. A decode worker is not chosen
                either if all prefill workers that fit it are among them.
            fitting: for `PREFILL`, the decode worker that the prefill worker must fit; None for any
                decode worker.
        """
        workers = self._candidates(model, mode, fitting)
        if not workers:
            return None
        if mode == DECODE:
            without = self._with_unpaired(model, without)
        skipped = self._with_avoided(model, mode, workers, without) if self._avoided else without
        if self._mode is RouterMode.LEAST_LOADED:
            return self._least_loaded(model, mode, workers, skipped)
        if self._mode is RouterMode.RANDOM or without:
            # A second choice for a request takes no turn: with two workers, each request would
            # else begin at the one that refused the request before.
            start = random.randrange(len(workers))  # noqa: S311  # not a secret
        else:
            # Or all processes would send their first request to one worker.
            first = random.randrange(len(workers)) if self._other_processes else 0  # noqa: S311
            key = (model, mode, None if fitting is None else fit_key(fitting))
            start = self._turns.setdefault(key, first)
            self._turns[key] += 1
        worker = workers[start % len(workers)]
        if worker.id not in skipped:
            return worker
        others = [worker for worker in workers if worker.id not in skipped]
        return random.choice(others) if others else None  # noqa: S311

    def _candidates(
        self, model: str, mode: str, fitting: Record | None = None
    ) -> tuple[Record, ...]:
        """Return the workers of a mode that serve `model`; the same object until they change."""
        if mode == AGGREGATED:
            return self.fleet.workers(model)
        pairs = self.fleet.pairs(model)
        if pairs is None:
            return ()
        if mode == DECODE:
            return pairs.decode
        return pairs.prefill if fitting is None else pairs.prefill_for(fitting)

    def _with_unpaired(self, model: str, ids: Collection[int]) -> Collection[int]:
        """Return `ids`, and the decode workers whose fitting prefill workers are all in `ids`."""
        pairs = self.fleet.pairs(model) if ids else None
        if pairs is None:
            return ids
        unpaired = {
            worker.id
            for worker in pairs.decode
            if all(one.id in ids for one in pairs.prefill_for(worker))
        }
        return {*ids, *unpaired}

    def _with_avoided(
        self, model: str, mode: str, workers: tuple[Record, ...], without: Collection[int]
    ) -> Collection[int]:
        """Return `without` and the avoided ids; only `without` if no worker is in neither."""
        now = time.monotonic()
        self._avoided = {id_: end for id_, end in self._avoided.items() if now < end}
        skipped: Collection[int] = {*without, *self._avoided}
        if mode == DECODE:
            skipped = self._with_unpaired(model, skipped)
        return skipped if any(worker.id not in skipped for worker in workers) else without

    def _least_loaded(
        self, model: str, mode: str, workers: tuple[Record, ...], without: Collection[int]
    ) -> Record | None:
        everyone = self._candidates(model, mode)
        by_load = self._by_load.get((model, mode))
        if by_load is None or by_load.workers is not everyone:
            by_load = self._by_load[model, mode] = _ByLoad(everyone, self._load, by_load)
        if workers is not everyone and len(workers) < len(everyone):
            fitting = {worker.id for worker in workers}
            without = {*without, *(one.id for one in everyone if one.id not in fitting)}
        return by_load.choose(without)

    @contextmanager
    def carrying(self, instance: Record) -> Iterator[None]:
        """Count a request in flight to `instance` while the context is open."""
        self._in_flight[instance.id] += 1
        self._load_changed(instance.id)
        try:
            yield
        finally:
            self._in_flight[instance.id] -= 1
            if not self._in_flight[instance.id]:
                del self._in_flight[instance.id]
            self._load_changed(instance.id)

    def _load(self, id_: int) -> float:
        own = self._in_flight[id_]
        assumed = self._other_processes * (own - self._reported.get(id_, 0))
        return max(0.0, own + self._others.get(id_, 0.0) + assumed)

    def _load_changed(self, id_: int) -> None:
        record = self.fleet.records.get(id_) if self._by_load else None
        if record is None:
            return
        for model in record.models:
            if by_load := self._by_load.get((model, record.mode)):
                by_load.load_changed(id_)


class _ByLoad:
    """The workers of one model in a heap, ordered by load and then by the turn of the last choice.

    When the load of a worker changes, a new entry is pushed. The outdated entries are dropped when
    they reach the top, or all at once when the heap has more than twice as many entries as workers.
    """

    def __init__(
        self, workers: tuple[Record, ...], load: Callable[[int], float], before: _ByLoad | None
    ) -> None:
        """Sort `workers`.

        Args:
            workers: the workers of the model, sorted by id.
            load: returns the load of a worker, by its id.
            before: the previous heap of the model, from which the turns are copied; None at first.
        """
        self.workers = workers
        self._load = load
        self._by_id = {worker.id: worker for worker in workers}
        self._turn: float = before._turn if before else 0.0
        entries = before._entries if before else {}
        # The load of each worker, and the turn in which it was chosen last, by id. Workers that
        # were not chosen yet have a random order, which differs between processes.
        self._entries: dict[int, tuple[float, float]] = {
            id_: (load(id_), entries[id_][1] if id_ in entries else -random.random())  # noqa: S311
            for id_ in self._by_id
        }
        self._sort()

    def _sort(self) -> None:
        self._heap = [(*entry, id_) for id_, entry in self._entries.items()]
        heapq.heapify(self._heap)

    def load_changed(self, id_: int) -> None:
        """Push a worker with its current load."""
        if id_ in self._entries:
            self._set(id_, self._entries[id_][1])

    def _set(self, id_: int, turn: float) -> None:
        entry = self._entries[id_] = (self._load(id_), turn)
        heapq.heappush(self._heap, (*entry, id_))
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._sort()

    def choose(self, without: Collection[int]) -> Record | None:
        """Return the least loaded worker that is not in `without`; None if there is none."""
        skipped = []
        chosen = None
        while self._heap and chosen is None:
            load, turn, id_ = heapq.heappop(self._heap)
            if self._entries[id_] != (load, turn):
                continue
            if id_ in without:
                skipped.append((load, turn, id_))
            else:
                chosen = self._by_id[id_]
        for entry in skipped:
            heapq.heappush(self._heap, entry)
        if chosen is not None:
            self._turn += 1
            self._set(chosen.id, self._turn)
        return chosen
