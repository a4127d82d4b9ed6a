"""The fleet: all processes that discovery shows, indexed.

A fleet compares each new set of records with the previous set, indexes it, and reports the changes.
A fleet does no input or output. One event loop owns a fleet; `discovery.follower` updates it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dynamometer.runtime.disaggregation import Pairs, misfit_reason
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL, Json, Record, Role, State


@dataclass(frozen=True, kw_only=True)
class Change:
    """The difference between two sets of records.

    Attributes:
        joined: records of new processes.
        changed: records that replaced an earlier record of the same process.
        left: last records of processes that left discovery.
        models: names of models whose ready workers, or records of ready workers, changed.
        served: names of models that can be served now and could not be served before.
        unserved: names of models that could be served before and cannot be served now.
    """

    joined: tuple[Record, ...]
    changed: tuple[Record, ...]
    left: tuple[Record, ...]
    models: frozenset[str]
    served: frozenset[str]
    unserved: frozenset[str]


Listener = Callable[[Change], None]
_Workers = dict[str, dict[str, tuple[Record, ...]]]


class Fleet:
    """All processes, indexed by id, and the ready workers, indexed by model and mode.

    A model is served by its aggregated workers; without one, by prefill and decode workers that fit
    each other.

    Attributes:
        fault: returns the reason why the records may be out of date; empty if they are not. The
            follower sets this function.
    """

    def __init__(
        self, *, namespace: str | None = None, engines: Collection[str] | None = None
    ) -> None:
        """Create a fleet without processes.

        Args:
            namespace: the namespace whose workers get requests; None for all namespaces.
            engines: the kinds of engines whose workers get requests; None for all kinds. A worker
                whose record names no kind always gets requests.
        """
        self._namespace = namespace
        self._engines = engines
        self._records: dict[int, Record] = {}
        self._ready: tuple[Record, ...] = ()
        self._workers: _Workers = {}
        self._pairs: dict[str, Pairs] = {}
        self._models: dict[str, Json] = {}
        self._registered: set[str] = set()
        self._listeners: list[Listener] = []
        self.fault: Callable[[], str] = lambda: ""

    def on_change(self, listener: Listener) -> None:
        """Call `listener` after each update that changed a record."""
        self._listeners.append(listener)

    def update(self, records: Iterable[Record]) -> None:
        """Replace all records with the records that discovery shows now."""
        before, served = self._records, self._models
        now = {record.id: record for record in records}
        if now == before:
            return
        self._records = now
        models = self._index()
        change = Change(
            joined=tuple(now[id_] for id_ in now.keys() - before.keys()),
            changed=tuple(new for new in now.values() if _replaces(new, before.get(new.id))),
            left=tuple(before[id_] for id_ in before.keys() - now.keys()),
            models=models,
            served=frozenset(self._models.keys() - served.keys()),
            unserved=frozenset(served.keys() - self._models.keys()),
        )
        for listener in self._listeners:
            listener(change)

    def _index(self) -> frozenset[str]:
        """Index the ready workers, and return the names of the models whose workers changed."""
        ready = [r for r in self._records.values() if self._serves(r) and r.state is State.READY]
        self._ready = tuple(sorted(ready, key=lambda record: record.id))
        found: dict[str, dict[str, list[Record]]] = {}
        for record in self._ready:
            for model in record.models:
                found.setdefault(model, {}).setdefault(record.mode, []).append(record)
        before = self._workers
        self._workers = {
            model: {mode: tuple(workers) for mode, workers in modes.items()}
            for model, modes in found.items()
        }
        for model, modes in self._workers.items():
            for mode, workers in modes.items():
                known = before.get(model, {}).get(mode)
                # `workers` returns the same object as before.
                modes[mode] = known if known is not None and known == workers else workers
        models = before.keys() | self._workers.keys()
        changed = {model for model in models if before.get(model) != self._workers.get(model)}
        self._registered |= self._workers.keys()
        self._pairs = dict(self._paired(changed))
        self._models = {
            model: _card(workers[-1], model)
            for model in self._workers
            if (workers := self.answering(model))
        }
        return frozenset(changed)

    def _paired(self, changed: Collection[str]) -> Iterator[tuple[str, Pairs]]:
        """Return the pairs of each model that has pairs, the same objects for unchanged models."""
        for model, modes in self._workers.items():
            if AGGREGATED in modes:
                continue
            pairs = self._pairs.get(model)
            if model in changed:
                pairs = Pairs.of(modes.get(PREFILL, ()), modes.get(DECODE, ()))
            if pairs is not None:
                yield model, pairs

    def _serves(self, record: Record) -> bool:
        """Return whether the process is a worker that gets requests once its state is ready."""
        return (
            record.role is Role.WORKER
            and self.unusable_reason(record) is None
            and record.request_url is not None
            and record.node_rank == 0
            and self._namespace in (None, record.namespace)
        )

    def unusable_reason(self, record: Record) -> str | None:
        """Return why this process cannot use a record of any state; None if it can."""
        if record.engine and self._engines is not None and record.engine not in self._engines:
            return f"its engine {record.engine!r} is unknown"
        return record.unusable_reason

    @property
    def records(self) -> Mapping[int, Record]:
        """All processes by id, of every role and state, usable or not."""
        return MappingProxyType(self._records)

    @property
    def ready(self) -> tuple[Record, ...]:
        """The ready workers of every mode, ordered by id."""
        return self._ready

    @property
    def workers_of_any_state(self) -> tuple[Record, ...]:
        """The workers that get requests once their state is ready, and those that get them now."""
        return tuple(record for record in self._records.values() if self._serves(record))

    @property
    def models(self) -> Mapping[str, Json]:
        """The models that can be served now, each with its entry in the engine's `/v1/models`."""
        return MappingProxyType(self._models)

    def workers(self, model: str, mode: str = AGGREGATED) -> tuple[Record, ...]:
        """Return the ready workers of a model and mode, ordered by id.

        The returned object stays the same until one of these workers changes.

        Args:
            model: a name that workers register; see `resolve`.
            mode: the mode of the workers; only aggregated workers answer a request alone.
        """
        return self._workers.get(model, {}).get(mode, ())

    def unused(self, model: str, mode: str) -> tuple[tuple[Record, ...], str]:
        """Return the ready workers that get no requests although the model is served, and why.

        Args:
            model: a name that workers register; see `resolve`.
            mode: `PREFILL` or `DECODE`.
        """
        ready, pairs = self.workers(model, mode), self.pairs(model)
        if pairs is None:
            return (ready if self.workers(model) else ()), "aggregated workers serve the model"
        paired = {record.id for record in (*pairs.prefill, *pairs.decode)}
        others = self.workers(model, DECODE if mode == PREFILL else PREFILL)
        unused = tuple(record for record in ready if record.id not in paired)
        sides = (unused, others) if mode == PREFILL else (others, unused)
        return unused, misfit_reason(*sides)

    def answering(self, model: str) -> tuple[Record, ...]:
        """Return the ready workers whose responses clients of a model get, ordered by id.

        These are the aggregated workers, or else the decode workers that a prefill worker fits.
        """
        pairs = self._pairs.get(model)
        return self.workers(model) if pairs is None else pairs.decode

    def pairs(self, model: str) -> Pairs | None:
        """Return the workers that serve a model in pairs; None for a model that others serve.

        The returned object stays the same until a ready worker of the model changes.

        Args:
            model: a name that workers register; see `resolve`.
        """
        return self._pairs.get(model)

    def resolve(self, model: str) -> str | None:
        """Return the registered name for the `model` of a request.

        As in SGLang, `NAME:ADAPTER` stands for `NAME`. A registered name may contain colons, too:
        the longest registered name that matches is returned.

        Returns:
            A name that workers register now or registered earlier; None if no name matches.
        """
        name = model
        while name not in self._registered:
            name, colon, _ = name.rpartition(":")
            if not colon:
                return None
        return name

    def missing_reason(self, model: str | None) -> str:
        """Return why no worker can take a request now.

        Args:
            model: a registered name; None for any model.
        """
        fault = self.fault()
        if not fault:
            return self._known_reason(model)
        return f"{fault} (last known: {self._known_reason(model)})" if self._records else fault

    def _known_reason(self, model: str | None) -> str:
        """Return the reason by the known records; see `missing_reason`."""
        if model is not None and model in self._workers:
            ready = [record for record in self._ready if model in record.models]
            return self._alone_reason(f"{model!r} has", ready, model)
        if self._ready and not self._models:
            return self._alone_reason("this deployment has", self._ready, None)
        subject = "no worker is ready" if model is None else f"no worker serves {model!r} now"
        return subject + self.describe_other_states(model)

    def _alone_reason(self, subject: str, ready: Sequence[Record], model: str | None) -> str:
        """Return why ready workers that cannot answer alone cannot serve together, either."""
        prefill, decode = (
            [record for record in ready if record.mode == mode] for mode in (PREFILL, DECODE)
        )
        if prefill and decode:
            sides = f"{_counted(prefill)} and {_counted(decode)}"
            return f"{subject} {sides} that do not fit: {misfit_reason(prefill, decode)}"
        missing = PREFILL if decode else DECODE
        states = self.describe_other_states(model, mode=missing)
        if states and (prefill or decode):
            return f"{subject} {_counted(prefill or decode)} and no ready {missing} worker{states}"
        modes = " and ".join(sorted({record.mode for record in ready}))
        return f"{subject} only {modes} workers, which cannot answer a request alone{states}"

    def describe_other_states(self, model: str | None, *, mode: str = AGGREGATED) -> str:
        """Return the numbers of workers of each state other than ready, for a message.

        Args:
            model: the model of the workers; None for all models.
            mode: the mode of workers that the message already names.
        """
        states: dict[str, Counter[str]] = {}
        for record in self.workers_of_any_state:
            if record.state is not State.READY and (model is None or model in record.models):
                states.setdefault(record.mode, Counter())[record.state] += 1
        shown = {
            name: ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
            for name, counts in sorted(states.items())
        }
        if shown.keys() == {mode}:
            return f" ({shown[mode]})"
        return f" ({'; '.join(f'{name}: {text}' for name, text in shown.items())})" if shown else ""


def _counted(ready: Sequence[Record]) -> str:
    plural = "" if len(ready) == 1 else "s"
    return f"{len(ready)} ready {ready[0].mode} worker{plural}"


def _card(record: Record, model: str) -> Json:
    """Return a model's entry in `/v1/models`; a minimal entry if the record has no valid entry."""
    card = record.model_info.get(model)
    return card if isinstance(card, dict) else {"id": model, "object": "model"}


def _replaces(new: Record, old: Record | None) -> bool:
    return old is not None and new is not old and new != old
