"""`/loads`: the load of each engine and of each of its data-parallel ranks, as JSON.

The figures are the load signals on the pages of workers and exporters. The age of a figure is the
time since its page was requested, which is at least the time since the worker read the value.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dynamometer.frontend.fleet_fetches import FleetFetches, FleetPages, ProcessPage
from dynamometer.names import engine_load, labels
from dynamometer.process.background import BackgroundThread
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import PREFILL, Json

_RUNNING: Final = "running"
_QUEUED: Final = "queued"
_USAGE: Final = "kv_usage"
_FIGURES: Final = (_RUNNING, _QUEUED, _USAGE)
# The figures by family; the families of ranks have one series per rank.
_OF_ENGINE: Final = {
    engine_load.RUNNING_REQUESTS: _RUNNING,
    engine_load.QUEUED_REQUESTS: _QUEUED,
    engine_load.KV_USAGE_RATIO: _USAGE,
}
_OF_RANK: Final = {
    engine_load.RANK_RUNNING_REQUESTS: _RUNNING,
    engine_load.RANK_QUEUED_REQUESTS: _QUEUED,
    engine_load.RANK_KV_USAGE_RATIO: _USAGE,
}
_NAMES: Final = frozenset({*_OF_ENGINE, *_OF_RANK})


@dataclass(frozen=True)
class _EngineLoad:
    """The load of one engine.

    Attributes:
        page: the page that has the engine's families.
        labels: the labels of the engine's series.
        figures: the figures of the engine by name.
        ranks: the figures of each data-parallel rank.
    """

    page: ProcessPage
    labels: Mapping[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, dict[str, float]] = field(default_factory=dict)


class FleetLoads:
    """The load of all engines, fetched from the pages of workers and exporters."""

    def __init__(self, fetches: FleetFetches, thread: BackgroundThread) -> None:
        """Store the arguments; `read` fetches the pages.

        Args:
            fetches: fetches the pages of all processes.
            thread: renders the answer.
        """
        self._fetches = fetches
        self._thread = thread

    async def read(self) -> bytes:
        """Return the loads as one JSON object.

        Raises:
            DynamometerError: The processes are unknown.
        """
        fetched = await self._fetches.fetch(_NAMES)
        return await self._thread.submit(partial(_render, fetched))


def _render(fetched: FleetPages) -> bytes:
    now = time.monotonic()
    known = {hexadecimal(page.record.id) for page in fetched.pages}
    loads = [load for page in fetched.pages for load in _loads(page, known)]
    body = {"workers": [_worker(load, now) for load in loads], "total": _total(loads, now)}
    return json.dumps(body, allow_nan=False).encode()


def _loads(page: ProcessPage, known: Container[str]) -> Collection[_EngineLoad]:
    """Return the load of each engine on a page; one without figures if the page has no engine.

    Args:
        page: the page.
        known: the ids of all processes; each shows its own load.
    """
    found: dict[tuple[tuple[str, str], ...], _EngineLoad] = {}
    own = hexadecimal(page.record.id)
    for family in (*page.families, *page.others):
        for sample in family.samples:
            name, value = family.name, float(sample.value)
            if name not in _NAMES or not math.isfinite(value):
                continue
            of_engine = dict(sample.series.labels)
            worker = of_engine[labels.WORKER_ID]
            if worker != own and worker in known:
                continue
            rank = of_engine.pop(labels.DP_RANK, "")
            load = found.setdefault(tuple(of_engine.items()), _EngineLoad(page, of_engine))
            if name in _OF_ENGINE:
                load.figures[_OF_ENGINE[name]] = value
            else:
                load.ranks.setdefault(rank, {})[_OF_RANK[name]] = value
    return found.values() or [_EngineLoad(page)]


def _worker(load: _EngineLoad, now: float) -> Json:
    record, error = load.page.record, load.page.error
    models = record.models or tuple(filter(None, [load.labels.get(labels.MODEL)]))
    age = _age(load, now)
    return {
        labels.WORKER_ID: load.labels.get(labels.WORKER_ID, hexadecimal(record.id)),
        "role": record.role,
        "namespace": record.namespace,
        "component": record.component,
        "engine": load.labels.get(labels.ENGINE, record.engine),
        "models": list(models),
        "mode": record.mode,
        "state": record.state,
        "error": None if error is None else {"reason": error.reason, "message": str(error)},
        **_shown(load.figures, age),
        "ranks": [
            {labels.DP_RANK: rank, **_shown(load.ranks[rank], age)}
            for rank in sorted(load.ranks, key=lambda rank: (len(rank), rank))
        ],
    }


def _total(loads: Collection[_EngineLoad], now: float) -> Json:
    """Return the sums, the mean KV usage of all ranks, and the largest age.

    A request that a prefill worker has is in a decode worker, too, where it counts.
    """
    counted = [load.figures for load in loads if load.page.record.mode != PREFILL]
    # A missing value is omitted: a load of 0 would attract all requests.
    of_engines = {
        name: [figures[name] for figures in counted if name in figures]
        for name in (_RUNNING, _QUEUED)
    }
    figures = {name: sum(values) for name, values in of_engines.items() if values}
    usage = [rank[_USAGE] for load in loads for rank in load.ranks.values() if _USAGE in rank]
    if usage:
        figures[_USAGE] = sum(usage) / len(usage)
    # A sum may be too large for a number.
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    return {
        "workers": len(loads),
        "answered": sum(load.page.error is None for load in loads),
        **_shown(figures, max((_age(load, now) for load in loads if load.figures), default=None)),
    }


def _age(load: _EngineLoad, now: float) -> float:
    return round(now - load.page.requested_at, 6)


def _shown(figures: Mapping[str, float], age: float | None) -> dict[str, Json]:
    """Return all figures, None for a missing one, and their age; None without figures."""
    shown: dict[str, Json] = {name: figures.get(name) for name in _FIGURES}
    return shown | {"age_seconds": age if figures else None}
