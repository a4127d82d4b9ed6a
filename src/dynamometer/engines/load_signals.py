"""The load of an engine: one value per signal, whatever the number of ranks and queues.

A router, an autoscaler or a dashboard can use these values without knowledge of the engine. The
values are derived from the engine's own families of the same page. The gauges of a rank without
requests count as 0, because the engine may leave the values of its last batch there. The gauges of
prefill and decode workers, which stand still while requests wait for the other side, are replaced
by the values in the engine's snapshots where it writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

from dynamometer.engines.ranks import LeadingSeries, RankValue
from dynamometer.engines.sglang_names import sglang
from dynamometer.engines.sglang_snapshots import LoadSnapshots, RankLoads
from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.ordering import sort_key
from dynamometer.exposition.reuse import UnchangedFamilies
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series
from dynamometer.names import engine_load, kvstats, labels, name_prefix
from dynamometer.runtime.record import DECODE, PREFILL

# A request is in one of these queues at a time. SGLang's queue of transfers into the host's memory
# is omitted, because its requests are also in the transfer queue.
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
# The gauges that are 0 for a rank without requests.
_LOAD: Final = (sglang.NUM_RUNNING_REQS, *_QUEUES, sglang.TOKEN_USAGE)

_RUNNING: Final = Metadata(
    engine_load.RUNNING_REQUESTS,
    "gauge",
    "Requests that the engine is running, summed over data-parallel ranks",
)
_QUEUED: Final = Metadata(
    engine_load.QUEUED_REQUESTS,
    "gauge",
    "Requests that wait in any queue of the engine, summed over data-parallel ranks",
)
_USAGE: Final = Metadata(
    engine_load.KV_USAGE_RATIO,
    "gauge",
    "Fraction of the KV cache in use, 0 to 1, mean of the data-parallel ranks",
)
_RANK_RUNNING: Final = Metadata(
    engine_load.RANK_RUNNING_REQUESTS,
    "gauge",
    "Requests that the data-parallel rank of the engine is running",
)
_RANK_QUEUED: Final = Metadata(
    engine_load.RANK_QUEUED_REQUESTS,
    "gauge",
    "Requests that wait in any queue of the data-parallel rank of the engine",
)
_RANK_USAGE: Final = Metadata(
    engine_load.RANK_KV_USAGE_RATIO,
    "gauge",
    "Fraction of the KV cache of the data-parallel rank in use, 0 to 1",
)
# SGLang counts cached tokens by the cache that had them, so that their sum has each token once.
_COUNTERS: Final = {
    sglang.GENERATION_TOKENS_TOTAL: Metadata(
        engine_load.GENERATION_TOKENS_TOTAL.removesuffix("_total"),
        "counter",
        "Tokens that the engine has generated, counted at the end of each request; 0 of a prefill "
        "engine",
    ),
    sglang.PROMPT_TOKENS_TOTAL: Metadata(
        engine_load.PROMPT_TOKENS_TOTAL.removesuffix("_total"),
        "counter",
        "Tokens of prompts, counted at the end of each request; 0 of a decode engine",
    ),
    sglang.CACHED_TOKENS_TOTAL: Metadata(
        engine_load.CACHED_PROMPT_TOKENS_TOTAL.removesuffix("_total"),
        "counter",
        "Tokens of prompts that a prefix cache had, counted at the end of each request; 0 of a "
        "decode engine",
    ),
}
# Where prefill and decode are apart, both engines count the tokens of a request. Each token counts
# in the engine that computes it.
_COUNTED_ELSEWHERE: Final = {
    sglang.GENERATION_TOKENS_TOTAL: PREFILL,
    sglang.PROMPT_TOKENS_TOTAL: DECODE,
    sglang.CACHED_TOKENS_TOTAL: DECODE,
}
_BLOCKS: Final = Metadata(
    f"{name_prefix.COMPONENT}_{kvstats.TOTAL_BLOCKS}",
    "gauge",
    "Total number of KV cache blocks available on the worker",
)
_FRACTION_USED: Final = Metadata(
    f"{name_prefix.COMPONENT}_{kvstats.GPU_CACHE_USAGE_PERCENT}",
    "gauge",
    "Fraction of the KV cache in use, 0 to 1 despite the name",
)
_HIT_RATE: Final = Metadata(
    f"{name_prefix.COMPONENT}_{kvstats.KV_CACHE_HIT_RATE}",
    "gauge",
    "Fraction of the recent prompt tokens that the prefix cache had, 0 to 1",
)
_ONLY_RANK: Final = "0"


class EngineLoad:
    """The load of one engine, derived from its families; see `Derivation`."""

    names: frozenset[str] = frozenset({*_GAUGES, *_COUNTERS})

    def __init__(
        self,
        owner: str,
        constant_labels: Callable[[], Mapping[str, str]],
        *,
        component: bool = False,
        ranks: bool = False,
        complete: Callable[[], bool] = lambda: True,
        pids: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        """Create the derivation of one engine; see `Engine.load_signals`.

        Args:
            owner: the owner of the sources that read the engine.
            constant_labels: returns the labels of all series; called at each refresh.
            component: add the KV cache families of a worker's component, with one series for each
                data-parallel rank.
            ranks: add the load of each data-parallel rank.
            complete: returns whether all sources of the engine are known. Then a counter that is
                missing in all of them is 0.
            pids: returns the processes of the engine; may block.
        """
        self.name = f"{owner}_load"
        self.owner = owner
        self._constant_labels = constant_labels
        self._component = component
        self._ranks = ranks
        self._complete = complete
        self._readers = {name: LeadingSeries(totals_by_priority=True) for name in _GAUGES}
        # In a counter, the series with an empty priority counts the requests without a priority.
        self._counters = {
            name: LeadingSeries(totals_by_priority=False, ignored_type=_COUNTED_ELSEWHERE[name])
            for name in _COUNTERS
        }
        self._counters_started: set[str] = set()
        self._counters_seen: set[str] = set()
        self._snapshots = LoadSnapshots(pids)
        self._families: Sequence[Family] | None = None
        self._last: tuple[Mapping[str, str], bool, Set[str], Mapping[str, Mapping[str, float]]]
        self._last = ({}, False, frozenset(), {})
        self._phase = ""
        self._by_name: Mapping[str, Family] = {}
        self._gauges: Mapping[str, Sequence[RankValue]] = {}
        self._derived: tuple[Family, ...] = ()
        self._unchanged = UnchangedFamilies()

    def derivable_from(self, prefixes: Sequence[str]) -> bool:
        """See `LoadSignals.derivable_from`; a sum without one of its families would be wrong."""
        return not prefixes or all(name.startswith(tuple(prefixes)) for name in self.names)

    def families(self, families: Sequence[Family]) -> Sequence[Family]:
        """See `Derivation.families`."""
        inputs = dict(self._constant_labels()), self._complete()
        changed = families is not self._families
        if changed:
            self._families = families
            self._by_name = {family.metadata.sample_name: family for family in families}
            self._phase = _phase(self._by_name.values())
            self._gauges = {
                name: reader.read(self._by_name.get(name)) for name, reader in self._readers.items()
            }
        busy = self._phase or any(one.value for name in _LOAD for one in self._gauges[name])
        loads = self._snapshots.read() if busy else RankLoads()
        idle = loads.idle_ranks()
        queues = loads.queues() if self._phase else {}
        if changed or (*inputs, idle, queues) != self._last:
            self._last = (*inputs, idle, queues)
            self._derived = self._unchanged.reuse(self._derive(*self._last))
        return self._derived

    def _derive(
        self,
        constant: Mapping[str, str],
        complete: bool,
        idle: Set[str],
        queues: Mapping[str, Mapping[str, float]],
    ) -> list[Family]:
        gauges = dict(self._gauges)
        if self._phase == PREFILL:
            gauges[sglang.NUM_RUNNING_REQS] = _without_inflight(gauges)
        found = {
            name: _without_stale(_with_queues(values, name, queues), idle)
            if name in _LOAD
            else values
            for name, values in gauges.items()
        }
        derived = []
        # A missing value is omitted: a load of 0 would attract all requests.
        if running := found[sglang.NUM_RUNNING_REQS]:
            derived.append(_single(_RUNNING, constant, _sum(running)))
        if queued := [one for name in _QUEUES for one in found[name]]:
            derived.append(_single(_QUEUED, constant, _sum(queued)))
        if usage := found[sglang.TOKEN_USAGE]:
            derived.append(_single(_USAGE, constant, _mean(usage)))
        if self._ranks:
            for metadata, values, combine in (
                (_RANK_RUNNING, running, _sum),
                (_RANK_QUEUED, queued, _sum),
                (_RANK_USAGE, usage, _mean),
            ):
                derived += _of_each_rank(metadata, constant, values, combine)
        reporting = complete and any(found.values())
        for name, metadata in _COUNTERS.items():
            counted = self._counters[name].read(self._by_name.get(name))
            # A counter starts at 0, so that rate() includes its first increase, and stays there
            # while the engine is restarted. A counter that is missing later is omitted, because a
            # fall to 0 would look like a restart.
            if reporting:
                self._counters_started.add(name)
            if counted or name in self._counters_started - self._counters_seen:
                derived.append(_single(metadata, constant, _sum(counted)))
            if counted:
                self._counters_seen.add(name)
        if self._component:
            derived += _component_families(found, constant)
        return derived


def _phase(families: Iterable[Family]) -> str:
    """Return the mode of a prefill or decode engine by its families; else an empty string.

    SGLang's label `engine_type` has the values of `Record.mode` there.
    """
    for family in families:
        if family.metadata.sample_name in _GAUGES and family.samples:
            phase = family.samples[0].series.labels.get(labels.ENGINE_TYPE, "")
            return phase if phase in (PREFILL, DECODE) else ""
    return ""


def _without_inflight(gauges: Mapping[str, Sequence[RankValue]]) -> Sequence[RankValue]:
    """Return the running requests of a prefill worker, each of which is in no queue.

    SGLang reports the requests of a batch as running at the end of the batch, when those that are
    complete are in the in-flight queue, too.
    """
    inflight = _by_rank(gauges[sglang.NUM_PREFILL_INFLIGHT_QUEUE_REQS])
    return [
        replace(one, value=max(0.0, one.value - inflight.get(one.dp_rank or _ONLY_RANK, 0.0)))
        for one in gauges[sglang.NUM_RUNNING_REQS]
    ]


def _with_queues(
    values: Sequence[RankValue], name: str, queues: Mapping[str, Mapping[str, float]]
) -> Sequence[RankValue]:
    """Return the values of a gauge, replaced where the snapshot of a rank has a value."""
    current = {rank: gauges[name] for rank, gauges in queues.items() if name in gauges}
    if not current:
        return values
    others = [one for one in values if (one.dp_rank or _ONLY_RANK) not in current]
    return [*others, *(RankValue(rank, value) for rank, value in current.items())]


def _without_stale(values: Sequence[RankValue], idle: Set[str]) -> Sequence[RankValue]:
    """Return the values, 0 for the ranks that have no request."""
    return [replace(one, value=0.0) if one.dp_rank in idle else one for one in values]


def _of_each_rank(
    metadata: Metadata,
    constant: Mapping[str, str],
    values: Sequence[RankValue],
    combine: Callable[[Sequence[RankValue]], float],
) -> list[Family]:
    """Return the family with one series for each data-parallel rank; none without values."""
    by_rank: dict[str, list[RankValue]] = {}
    for one in values:
        by_rank.setdefault(one.dp_rank or _ONLY_RANK, []).append(one)
    series = {
        Series.of(metadata.text_name, {**constant, labels.DP_RANK: rank}): combine(found)
        for rank, found in by_rank.items()
    }
    return [_family(metadata, series)] if series else []


def _component_families(
    found: Mapping[str, Sequence[RankValue]], constant: Mapping[str, str]
) -> list[Family]:
    by_rank = {name: _by_rank(values) for name, values in found.items()}
    ranks = {rank for values in by_rank.values() for rank in values}
    families = []
    for metadata, value_of in (
        (_BLOCKS, _blocks),
        (_FRACTION_USED, lambda values, rank: values[sglang.TOKEN_USAGE].get(rank)),
        (_HIT_RATE, lambda values, rank: values[sglang.CACHE_HIT_RATE].get(rank)),
    ):
        series = {}
        for rank in ranks:
            value = value_of(by_rank, rank)
            if value is not None:
                series_labels = {labels.DP_RANK: rank}
                series_labels |= {
                    label: constant[label]
                    for label in (labels.COMPONENT, labels.MODEL)
                    if label in constant
                }
                series[Series.of(metadata.text_name, series_labels)] = value
        if series:
            families.append(_family(metadata, series))
    return families


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


def _single(metadata: Metadata, constant: Mapping[str, str], value: float) -> Family:
    return _family(metadata, {Series.of(metadata.text_name, constant): value})


def _family(metadata: Metadata, values: Mapping[Series, float]) -> Family:
    series = sorted(values, key=sort_key)
    return Family.of_samples(metadata, [Sample(one, format_number(values[one])) for one in series])
