"""The families of the frontend that describe models and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry

from dynamometer import names
from dynamometer.metrics.removable_gauge import RemovableGauge
from dynamometer.names import (
    frontend_resilience,
    frontend_service,
    labels,
    name_prefix,
    worker_type,
)
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

# A request never moves to another worker after its response started.
_MIGRATIONS: Final = 0


class WorkerMetrics:
    """The families with the labels `model` or `worker_id` that describe workers."""

    def __init__(self, registry: CollectorRegistry, *, prefix: str = name_prefix.FRONTEND) -> None:
        """Register the families.

        Args:
            registry: the registry of the families.
            prefix: replaces `dynamo_frontend` in the names of families.
        """
        family = frontend_service

        def by_model(name: str, text: str) -> RemovableGauge:
            return RemovableGauge(f"{prefix}_{name}", text, (labels.MODEL,), registry=registry)

        def by_worker(name: str, text: str) -> RemovableGauge:
            by = (labels.WORKER_ID, labels.DP_RANK, labels.WORKER_TYPE)
            return RemovableGauge(f"{prefix}_{name}", text, by, registry=registry)

        self._ready = by_model(
            family.MODEL_READY, "Whether a worker serves the model now (1 = ready, 0 = not ready)"
        )
        self._workers = by_model(
            family.MODEL_WORKERS,
            "Number of workers that serve the model now (with pairs: the decode workers)",
        )
        self._states = RemovableGauge(
            frontend_resilience.WORKERS,
            "Number of workers of the model in discovery, by mode and state",
            (labels.MODEL, labels.MODE, labels.STATE),
            registry=registry,
        )
        # The series of the gauge, with their values: a state that occurred once stays, at 0.
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._migrations = by_model(
            family.MODEL_MIGRATION_LIMIT,
            "How often a request that was started may move to another worker",
        )
        self._engine_info: Mapping[str, RemovableGauge] = {
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
        """Show the changed models, and remove the last values of workers that are not ready.

        Args:
            fleet: the fleet after the change.
            change: the difference from the fleet before the change.
        """
        self._show_states(fleet)
        for model in change.models:
            self._show(model, fleet.answering(model))
        ids = {worker.id for worker in fleet.ready}
        for gone in self._last.keys() - ids:
            self._last.pop(gone).remove()
        for worker in ids - self._last.keys():
            gauges = (self._first_token, self._inter_token, self._input)
            self._last[worker] = LastValues(gauges, worker)

    def last_values(self, worker: int) -> LastValues | None:
        """Return the last values of a worker; None if the worker is not ready."""
        return self._last.get(worker)

    def _show_states(self, fleet: Fleet) -> None:
        counts = Counter(
            (model, worker.mode, str(worker.state))
            for worker in fleet.workers_of_any_state
            for model in worker.models
        )
        for series in counts.keys() | self._counts.keys():
            if series not in self._counts or counts[series] != self._counts[series]:
                self._counts[series] = counts[series]
                self._states.set(series, counts[series])

    def _show(self, model: str, workers: Sequence[Record]) -> None:
        self._ready.set((model,), 1 if workers else 0)
        self._workers.set((model,), len(workers))
        if not workers:
            for gauge in (self._migrations, *self._engine_info.values()):
                gauge.remove((model,))
            return
        self._migrations.set((model,), _MIGRATIONS)
        info = next((w.engine_info for w in workers if w.engine_info), {})
        for name, gauge in self._engine_info.items():
            value = number(info.get(name))
            if name == CONTEXT_LENGTH:
                value = _context_length(model, workers) or value
            if value is None:
                gauge.remove((model,))
            else:
                gauge.set((model,), value)


class LastValues:
    """The series of one worker that show the values of its last request.

    A series is shown once it has a value.
    """

    __slots__ = ("_gauges", "_labels")

    def __init__(
        self, gauges: tuple[RemovableGauge, RemovableGauge, RemovableGauge], worker: int
    ) -> None:
        self._gauges = gauges
        # As in NVIDIA Dynamo, the id is decimal in these families; it is hexadecimal in all others.
        self._labels = (str(worker), names.NO_DP_RANK, worker_type.DECODE)

    def set(
        self, first_token: float | None, inter_token: float | None, input_tokens: float | None
    ) -> None:
        """Set the values of a finished request; None keeps the previous value.

        Args:
            first_token: the time to the first event with content, in seconds.
            inter_token: the time between the last two events with content, in seconds.
            input_tokens: the tokens of the prompt.
        """
        for gauge, value in zip(
            self._gauges, (first_token, inter_token, input_tokens), strict=True
        ):
            if value is not None:
                gauge.set(self._labels, value)

    def remove(self) -> None:
        """Remove the series of this worker."""
        for gauge in self._gauges:
            gauge.remove(self._labels)


def _context_length(model: str, workers: Sequence[Record]) -> float | None:
    """Return the context length of a model or adapter, as its first worker reports it."""
    card = workers[0].model_info.get(model)
    return number(card.get("max_model_len")) if isinstance(card, dict) else None
