"""Prefill and decode workers that can serve a request together.

A decode worker continues with the KV cache of a prefill worker, so both need the same layout of the
cache: the scheduler of the decode worker ends when the layouts differ. A property of the cache that
one of the two records does not have is not compared.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import KV_BLOCK_SIZE, KV_CACHE_DTYPE, Json, Record

_CACHE_PROPERTIES: Final = (KV_BLOCK_SIZE, KV_CACHE_DTYPE)

# The values by which workers fit each other.
FitKey = tuple[str, str, Json, Json]


def fit_key(worker: Record) -> FitKey:
    """Return the values that decide which workers of the other mode fit a worker."""
    block_size, dtype = (worker.engine_info.get(name) for name in _CACHE_PROPERTIES)
    return worker.namespace, worker.engine, block_size, dtype


@dataclass(frozen=True, eq=False)
class Pairs:
    """The ready prefill and decode workers of one model that fit each other.

    Attributes:
        prefill: the prefill workers that fit a decode worker, ordered by id.
        decode: the decode workers that fit a prefill worker, ordered by id.
    """

    prefill: tuple[Record, ...]
    decode: tuple[Record, ...]
    _fitting: Mapping[FitKey, tuple[Record, ...]]

    @classmethod
    def of(cls, prefill: Sequence[Record], decode: Sequence[Record]) -> Pairs | None:
        """Return the workers that fit each other; None if no two workers fit.

        Args:
            prefill: the ready prefill workers of a model, ordered by id.
            decode: the ready decode workers of the model, ordered by id.
        """
        fitting = {
            key: tuple(one for one in prefill if _misfit(one, worker) is None)
            for key, worker in {fit_key(worker): worker for worker in decode}.items()
        }
        paired = {worker.id for workers in fitting.values() for worker in workers}
        if not paired:
            return None
        return cls(
            tuple(worker for worker in prefill if worker.id in paired),
            tuple(worker for worker in decode if fitting[fit_key(worker)]),
            fitting,
        )

    def prefill_for(self, decode: Record) -> tuple[Record, ...]:
        """Return the prefill workers that fit a decode worker, ordered by id."""
        return self._fitting.get(fit_key(decode), ())


def misfit_reason(prefill: Sequence[Record], decode: Sequence[Record]) -> str:
    """Return why two of these workers, of which no two fit, do not fit each other."""
    reasons = (_misfit(one, other) for one in _distinct(prefill) for other in _distinct(decode))
    return min((reason for reason in reasons if reason), default=(0, ""))[1]


def _distinct(workers: Sequence[Record]) -> Collection[Record]:
    """Return the first of all workers that fit the same ones: each refused request has a reason."""
    found: dict[Hashable, Record] = {}
    for worker in workers:
        found.setdefault((fit_key(worker), worker.models, worker.bootstrap is None), worker)
    return found.values()


def _misfit(prefill: Record, decode: Record) -> tuple[int, str] | None:
    """Return the reason why two workers do not fit, after its rank; None if they fit.

    The reason with the lowest rank is the last obstacle of a pair.
    """
    first, second = (
        f"{worker.mode} worker {hexadecimal(worker.id)}" for worker in (prefill, decode)
    )
    if not set(prefill.models) & set(decode.models):
        return 3, f"{first} and {second} have no model in common"
    compared: list[tuple[int, str, Json, Json]] = [
        (2, "namespace", prefill.namespace, decode.namespace),
        (2, "engine", prefill.engine, decode.engine),
    ]
    for name in _CACHE_PROPERTIES:
        values = prefill.engine_info.get(name), decode.engine_info.get(name)
        if None not in values:
            compared.append((1, name, *values))
    for rank, name, one, other in compared:
        if one != other:
            return rank, f"{name} is {one!r} at {first} and {other!r} at {second}"
    if prefill.bootstrap is None:
        return 0, f"the record of {first} has no bootstrap address"
    return None
