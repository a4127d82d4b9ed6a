"""What the frontend shows of the workers: what their models are, and what each did last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from dynamometer import names
from dynamometer.names import frontend_service, labels, name_prefix, worker_type
from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.runtime.record import (
    CONTEXT_LENGTH,
    KV_BLOCK_SIZE,
    MAX_BATCHED_TOKENS,
    MAX_SEQUENCES,
    TOTAL_KV_BLOCKS,
    Record,
    number,
)

# A request that has begun never moves.
_MIGRATIONS: Final = 0


class WorkerMetrics:
    """The families by model that workers tell of, and those by worker."""

    def __init__(self, registry: CollectorRegistry, *, prefix: str = name_prefix.FRONTEND) -> None:
        """Register the families.

        Args:
            registry: where they are collected.
            prefix: what their names begin with.
        """
        family = frontend_service

        def by_model(name: str, text: str) -> Gauge:
            return Gauge(f"{prefix}_{name}", text, (labels.MODEL,), registry=registry)

        def by_worker(name: str, text: str) -> Gauge:
            by = (labels.WORKER_ID, labels.DP_RANK, labels.WORKER_TYPE)
            return Gauge(f"{prefix}_{name}", text, by, registry=registry)

        self._ready = by_model(
            family.MODEL_READY, "Whether a worker serves the model now (1 = ready, 0 = not ready)"
        )
        self._workers = by_model(family.MODEL_WORKERS, "Number of workers that serve the model now")
        self._migrations = by_model(
            family.MODEL_MIGRATION_LIMIT,
            "How often a request that has begun may move to another worker",
        )
        self._told: Mapping[str, Gauge] = {
            CONTEXT_LENGTH: by_model(
                family.MODEL_CONTEXT_LENGTH, "Maximum context length in tokens"
            ),
            TOTAL_KV_BLOCKS: by_model(
                family.MODEL_TOTAL_KV_BLOCKS, "Total KV cache blocks of a worker, all of its ranks"
            ),
            KV_BLOCK_SIZE: by_model(
                family.MODEL_KV_CACHE_BLOCK_SIZE, "KV cache block size in tokens"
            ),
            MAX_SEQUENCES: by_model(
                family.MODEL_MAX_NUM_SEQS,
                "Maximum number of requests that a worker runs at a time, all of its ranks",
            ),
            MAX_BATCHED_TOKENS: by_model(
                family.MODEL_MAX_NUM_BATCHED_TOKENS,
                "Maximum number of prompt tokens in one batch",
            ),
        }
        self._first_token = by_worker(
            family.WORKER_LAST_TIME_TO_FIRST_TOKEN_SECONDS,
            "Last observed time to first token per worker (seconds)",
        )
        self._inter_token = by_worker(
            family.WORKER_LAST_INTER_TOKEN_LATENCY_SECONDS,
            "Last observed inter-token latency per worker (seconds)",
        )
        self._input = by_worker(
            family.WORKER_LAST_INPUT_SEQUENCE_TOKENS,
            "Last observed input sequence tokens per worker",
        )
        self._last: dict[int, LastValues] = {}

    def update(self, fleet: Fleet, change: Change) -> None:
        """Show the models whose workers changed, and keep last values of the ready workers alone.

        Args:
            fleet: as it is now; of a model's workers the first leads.
            change: made it so.
        """
        for model in change.models:
            self._show(model, fleet.workers(model))
        ids = {worker.id for worker in fleet.ready}
        for gone in self._last.keys() - ids:
            self._last.pop(gone).remove()
        for worker in ids - self._last.keys():
            gauges = (self._first_token, self._inter_token, self._input)
            self._last[worker] = LastValues(gauges, worker)

    def last(self, worker: int) -> LastValues | None:
        """Where the last values of a worker are kept; None where it is gone."""
        return self._last.get(worker)

    def _show(self, model: str, workers: Sequence[Record]) -> None:
        self._ready.labels(model).set(1 if workers else 0)
        self._workers.labels(model).set(len(workers))
        if not workers:
            for gauge in (self._migrations, *self._told.values()):
                _remove(gauge, (model,))
            return
        self._migrations.labels(model).set(_MIGRATIONS)
        told = next((w.engine_info for w in workers if w.engine_info), {})
        for name, gauge in self._told.items():
            value = number(told.get(name))
            if name == CONTEXT_LENGTH:
                value = _context_length(model, workers) or value
            if value is None:
                _remove(gauge, (model,))
            else:
                gauge.labels(model).set(value)


class LastValues:
    """What one worker did last; a series is there once there is a value."""

    __slots__ = ("_gauges", "_labels", "_series")

    def __init__(self, gauges: tuple[Gauge, Gauge, Gauge], worker: int) -> None:
        self._gauges = gauges
        # In decimal, unlike everywhere else: as the peer has it.
        self._labels = (str(worker), names.NO_DP_RANK, worker_type.DECODE)
        self._series: list[Gauge | None] = [None] * len(gauges)

    def set(
        self, first_token: float | None, inter_token: float | None, input_tokens: float | None
    ) -> None:
        """Take over what a request has shown; None: it has not.

        Args:
            first_token: seconds until the first event with content of its stream.
            inter_token: seconds between the last two.
            input_tokens: tokens of its prompt.
        """
        for place, value in enumerate((first_token, inter_token, input_tokens)):
            if value is not None:
                series = self._series[place]
                if series is None:
                    series = self._series[place] = self._gauges[place].labels(*self._labels)
                series.set(value)

    def remove(self) -> None:
        """Show none of it any more."""
        for gauge in self._gauges:
            _remove(gauge, self._labels)


def _remove(gauge: Gauge, values: Iterable[str]) -> None:
    try:
        gauge.remove(*values)
    except KeyError:
        return  # it had no such series


def _context_length(model: str, workers: Sequence[Record]) -> float | None:
    """What the leading worker's list of models says of this one: an adapter may have its own."""
    card = workers[0].model_info.get(model)
    return number(card.get("max_model_len")) if isinstance(card, dict) else None
