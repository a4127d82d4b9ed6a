"""The fleet: all processes that discovery shows, kept in one place and indexed.

Records go in, indexes and changes come out. There is no input or output here and no waiting; one
event loop owns a fleet (`discovery.follower` keeps it current).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dynamometer.runtime.record import AGGREGATED, Json, Record, Role, State


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an update changed.

    Attributes:
        joined: records of processes that were not there before.
        changed: records that replaced another one of the same process.
        left: last records of processes that are gone.
        models: names of models whose ready workers changed, or their records.
        served: those of them that can be served now, and could not before.
        unserved: those of them that could be served before, and cannot now.
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
    """The processes, by id; the ready workers, by model and mode."""

    def __init__(
        self, *, namespace: str | None = None, engines: Collection[str] | None = None
    ) -> None:
        """Create a fleet without processes.

        Args:
            namespace: the only one whose workers serve; None: all.
            engines: the kinds of engines that this process can serve; None: any. A worker that
                names no kind is served always.
        """
        self._namespace = namespace
        self._engines = engines
        self._records: dict[int, Record] = {}
        self._ready: tuple[Record, ...] = ()
        self._workers: _Workers = {}
        self._models: dict[str, Json] = {}
        self._known: set[str] = set()
        self._listeners: list[Listener] = []

    def on_change(self, listener: Listener) -> None:
        """Call `listener` after each update that changed something."""
        self._listeners.append(listener)

    def update(self, records: Iterable[Record]) -> None:
        """Replace all records by those that discovery shows now."""
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
        changed = set()
        for model in before.keys() | self._workers.keys():
            if before.get(model) == self._workers.get(model):
                self._workers[model] = before[model]  # the same objects: others keep them too
            else:
                changed.add(model)
        self._known |= self._workers.keys()
        self._models = {
            model: _card(modes[AGGREGATED][-1], model)
            for model, modes in self._workers.items()
            if AGGREGATED in modes
        }
        return frozenset(changed)

    def _serves(self, record: Record) -> bool:
        """Return whether requests may go to the process when it is ready."""
        return (
            record.role is Role.WORKER
            and self.unusable_reason(record) is None
            and record.request_url is not None
            and self._namespace in (None, record.namespace)
        )

    def unusable_reason(self, record: Record) -> str | None:
        """Return why this process cannot use a record, whatever its state; None where it can."""
        if record.engine and self._engines is not None and record.engine not in self._engines:
            return f"its engine {record.engine!r} is unknown"
        return record.unusable_reason

    @property
    def records(self) -> Mapping[int, Record]:
        """All processes by id: of every role, ready or not, usable or not."""
        return MappingProxyType(self._records)

    @property
    def ready(self) -> tuple[Record, ...]:
        """The ready workers of every mode, by id."""
        return self._ready

    @property
    def models(self) -> Mapping[str, Json]:
        """The models that can be served now, each with its card in the engine's `/v1/models`."""
        return MappingProxyType(self._models)

    def workers(self, model: str, mode: str = AGGREGATED) -> tuple[Record, ...]:
        """Return the ready workers of a model and mode, by id; the same object until they change.

        Args:
            model: a name that workers register; see `resolve`.
            mode: of the workers; only aggregated ones answer a request alone.
        """
        return self._workers.get(model, {}).get(mode, ())

    def resolve(self, model: str) -> str | None:
        """Return the registered name that a request's `model` means.

        That is the name itself, or else the name before `:ADAPTER`, as SGLang reads it: the longest
        one, since registered names may have colons too.

        Returns:
            A name that workers register now, or did so earlier; None where there is none.
        """
        name = model
        while name not in self._known:
            name, colon, _ = name.rpartition(":")
            if not colon:
                return None
        return name

    def missing_reason(self, model: str | None) -> str:
        """Return why no worker can take a request now.

        Args:
            model: a registered name; None: of any.
        """
        if model is None or model not in self._workers:
            others = sorted({record.mode for record in self._ready})
            if self._models or not others:
                return "no worker is ready" if model is None else f"no worker serves {model!r} now"
            subject = "this deployment has"
        else:
            others, subject = sorted(self._workers[model]), f"{model!r} has"
        modes = " and ".join(others)
        return f"{subject} only {modes} workers, and none that answers a request alone"


def _card(record: Record, model: str) -> Json:
    """Return a model's card; a least one where the record has none, or not an object."""
    card = record.model_info.get(model)
    return card if isinstance(card, dict) else {"id": model, "object": "model"}


def _replaces(new: Record, old: Record | None) -> bool:
    return old is not None and new is not old and new != old
