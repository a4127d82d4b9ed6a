"""How busy an engine is, in one number a worker, whatever its ranks.

Who routes or scales by load, and who draws it, needs not know of an engine's ranks, priorities and
queues. The numbers are concluded from its own families, as they stand on the same page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from dynamometer.engines.ranks import LeadingSeries, RankValue
from dynamometer.engines.sglang_names import sglang
from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.ordering import sort_key
from dynamometer.exposition.reuse import UnchangedFamilies
from dynamometer.exposition.series import labels_text, series_text
from dynamometer.names import engine_load, kvstats, labels, name_prefix

# Requests are in one of these at a time. SGLang's queue of what a decode engine receives into the
# host's memory is none of them: it is a part of the transfer queue.
_QUEUES: Final = (
    sglang.NUM_QUEUE_REQS,
    sglang.NUM_GRAMMAR_QUEUE_REQS,
    sglang.NUM_PREFILL_BOOTSTRAP_QUEUE_REQS,
    sglang.NUM_PREFILL_INFLIGHT_QUEUE_REQS,
    sglang.NUM_DECODE_PREALLOC_QUEUE_REQS,
    sglang.NUM_DECODE_TRANSFER_QUEUE_REQS,
)
_GAUGES: Final = (
    sglang.NUM_RUNNING_REQS,
    *_QUEUES,
    sglang.TOKEN_USAGE,
    sglang.CACHE_HIT_RATE,
    sglang.NUM_PAGES,
    sglang.MAX_TOTAL_NUM_TOKENS,
    sglang.PAGE_SIZE,
)
_COUNTER: Final = sglang.GENERATION_TOKENS_TOTAL

_RUNNING: Final = Metadata(
    engine_load.RUNNING_REQUESTS,
    "gauge",
    "Requests that the engine is working on: of all data-parallel ranks, each once",
)
_QUEUED: Final = Metadata(
    engine_load.QUEUED_REQUESTS,
    "gauge",
    "Requests that wait in the engine, in any of its queues: of all data-parallel ranks, each once",
)
_USAGE: Final = Metadata(
    engine_load.KV_USAGE_RATIO,
    "gauge",
    "Part of the KV cache in use, 0 to 1: the mean of all data-parallel ranks",
)
_GENERATED: Final = Metadata(
    engine_load.GENERATION_TOKENS_TOTAL.removesuffix("_total"),
    "counter",
    "Tokens that the engine has generated, counted when their request has ended",
)
_BLOCKS: Final = Metadata(
    f"{name_prefix.COMPONENT}_{kvstats.TOTAL_BLOCKS}",
    "gauge",
    "Total number of KV cache blocks available on the worker",
)
_PART_USED: Final = Metadata(
    f"{name_prefix.COMPONENT}_{kvstats.GPU_CACHE_USAGE_PERCENT}",
    "gauge",
    "Part of the KV cache in use, 0 to 1 despite the name",
)
_HIT_RATE: Final = Metadata(
    f"{name_prefix.COMPONENT}_{kvstats.KV_CACHE_HIT_RATE}",
    "gauge",
    "Part of the last prompts that the prefix cache had, 0 to 1",
)
_ONLY_RANK: Final = "0"


class EngineLoad:
    """The load of one engine, concluded from its families; see `Derivation`."""

    names: frozenset[str] = frozenset({*_GAUGES, _COUNTER})

    def __init__(
        self,
        owner: str,
        constant: Callable[[], Mapping[str, str]],
        *,
        component: bool = False,
        complete: Callable[[], bool] = lambda: True,
    ) -> None:
        """Nothing is concluded yet.

        Args:
            owner: whose sources show the engine.
            constant: the labels of the series, at the time of the question.
            component: whether to give the KV cache's families of a worker's component too, a
                series for each data-parallel rank.
            complete: whether all sources of the engine are known, so that a counter that none of
                them has is 0.
        """
        self.name = f"{owner}_load"
        self.owner = owner
        self._constant = constant
        self._component = component
        self._complete = complete
        self._readers = {name: LeadingSeries(totals_by_priority=True) for name in _GAUGES}
        # Of a counter the series with an empty priority is no total: requests that have none.
        self._counter = LeadingSeries(totals_by_priority=False)
        self._counted = False
        self._last: tuple[Sequence[Family] | None, Mapping[str, str], bool] = (None, {}, False)
        self._made: tuple[Family, ...] = ()
        self._unchanged = UnchangedFamilies()

    def shown_by(self, prefixes: Sequence[str]) -> bool:
        """Whether sources show all that it looks at, of whose families only those pass that begin
        with one of `prefixes`; none: all. Of what is left out nothing would be known.
        """
        return not prefixes or all(name.startswith(tuple(prefixes)) for name in self.names)

    def families(self, families: Sequence[Family]) -> Sequence[Family]:
        """See `Derivation.families`."""
        constant, complete = self._constant(), self._complete()
        before, constant_before, complete_before = self._last
        same = before is families and complete == complete_before and constant == constant_before
        if not same:
            self._last = (families, dict(constant), complete)
            self._made = self._unchanged.reuse(self._concluded(families, constant, complete))
        return self._made

    def _concluded(
        self, families: Sequence[Family], constant: Mapping[str, str], complete: bool
    ) -> list[Family]:
        by_name = {family.metadata.sample_name: family for family in families}
        found = {name: reader.read(by_name.get(name)) for name, reader in self._readers.items()}
        alive = any(found.values())
        made = []
        # Each only where the engine says it: silence is not 0, to which all requests would be sent.
        if running := found[sglang.NUM_RUNNING_REQS]:
            made.append(_one(_RUNNING, constant, _sum(running)))
        if queued := [one for name in _QUEUES for one in found[name]]:
            made.append(_one(_QUEUED, constant, _sum(queued)))
        if usage := found[sglang.TOKEN_USAGE]:
            made.append(_one(_USAGE, constant, _mean(usage)))
        counted = self._counter.read(by_name.get(_COUNTER))
        # Shown before its first increase, so that it is seen; never again where it was there once,
        # because what falls to 0 has begun anew.
        if counted or (alive and complete and not self._counted):
            made.append(_one(_GENERATED, constant, _sum(counted)))
            self._counted = self._counted or bool(counted)
        if self._component:
            made += _of_component(found, constant)
        return made


def _of_component(
    found: Mapping[str, Sequence[RankValue]], constant: Mapping[str, str]
) -> list[Family]:
    by_rank = {name: _by_rank(values) for name, values in found.items()}
    ranks = {rank for values in by_rank.values() for rank in values}
    made = []
    for metadata, value_of in (
        (_BLOCKS, _blocks),
        (_PART_USED, lambda values, rank: values[sglang.TOKEN_USAGE].get(rank)),
        (_HIT_RATE, lambda values, rank: values[sglang.CACHE_HIT_RATE].get(rank)),
    ):
        series = {}
        for rank in ranks:
            value = value_of(by_rank, rank)
            if value is not None:
                own = {labels.DP_RANK: rank}
                own |= {
                    label: constant[label]
                    for label in (labels.COMPONENT, labels.MODEL)
                    if label in constant
                }
                series[series_text(metadata.text_name, labels_text(own))] = value
        if series:
            made.append(_family(metadata, series))
    return made


def _blocks(by_rank: Mapping[str, Mapping[str, float]], rank: str) -> float | None:
    pages = by_rank[sglang.NUM_PAGES].get(rank)
    if pages is not None:
        return pages
    tokens = by_rank[sglang.MAX_TOTAL_NUM_TOKENS].get(rank)
    size = by_rank[sglang.PAGE_SIZE].get(rank)
    return tokens // size if tokens is not None and size else None


def _by_rank(values: Iterable[RankValue]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for one in values:
        found.setdefault(one.dp_rank or _ONLY_RANK, one.value)
    return found


def _sum(values: Iterable[RankValue]) -> float:
    return sum(one.value for one in values)


def _mean(values: Sequence[RankValue]) -> float:
    return _sum(values) / len(values)


def _one(metadata: Metadata, constant: Mapping[str, str], value: float) -> Family:
    return _family(metadata, {series_text(metadata.text_name, labels_text(constant)): value})


def _family(metadata: Metadata, series: Mapping[str, float]) -> Family:
    lines = [f"{one} {format_number(series[one])}\n" for one in sorted(series, key=sort_key)]
    return Family(metadata, frozenset({metadata.text_name}), ("".join(lines).encode(),))
