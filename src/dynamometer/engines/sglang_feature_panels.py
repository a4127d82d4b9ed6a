"""Panels of features that an engine may not use: each needs a mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dynamometer.engines.sglang_names import sglang
from dynamometer.engines.sglang_queries import (
    CACHES,
    RANKS,
    REQUESTS,
    cache_events,
    events,
    gauge,
    total,
    with_model,
)
from dynamometer.panels import Mode, Panel, Query, Row, Unit, rate

# The host pool exists only with a hierarchical cache; the number of drafts is 0 without drafts.
_HOST_POOL: Final = gauge(sglang.HICACHE_HOST_TOTAL_TOKENS)
_DRAFTS: Final = f"max by (model_name) ({sglang.SPEC_NUM_DRAFT_TOKENS}{{{RANKS}}} > 0)"


def _cache_rate(family: str) -> str:
    return cache_events(family, present=_HOST_POOL)


def _rate(family: str) -> str:
    return total(with_model(rate(family, CACHES)))


_HIERARCHICAL_CACHE: Final = Row(
    "Hierarchical cache",
    [
        Panel(
            title="Host pool",
            unit=Unit.TOKENS,
            queries=[
                Query(gauge(sglang.HICACHE_HOST_USED_TOKENS), "used {{model_name}}"),
                Query(_HOST_POOL, "size {{model_name}}"),
            ],
            description="How full is the cache in the host's memory? Full is its normal state; "
            "what counts is the share of hits from the host.",
            needs=Mode.HIERARCHICAL_CACHE,
        ),
        Panel(
            title="Traffic between device and host",
            unit=Unit.BYTES_PER_SECOND,
            queries=[
                Query(
                    _cache_rate(sglang.HICACHE_BACKUP_BYTES_TOTAL),
                    "to the host {{model_name}}",
                ),
                Query(
                    _cache_rate(sglang.LOAD_BACK_BYTES_TOTAL),
                    "to the device {{model_name}}",
                ),
            ],
            description="Is the host cache worth its traffic? Much to the host and little to the "
            "device: prefixes are kept that no request uses again.",
            needs=Mode.HIERARCHICAL_CACHE,
        ),
        Panel(
            title="Mean time of a transfer",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    f"{_rate(f'{family}_sum')} / {_rate(f'{family}_count')}",
                    f"{direction} {{{{model_name}}}}",
                )
                for family, direction in (
                    (sglang.HICACHE_BACKUP_DURATION_SECONDS, "to the host"),
                    (sglang.LOAD_BACK_DURATION_SECONDS, "to the device"),
                )
            ],
            description="How long does a request wait for its prefix from the host? If this "
            "exceeds the time of computing the prefix, the cache slows requests down.",
            needs=Mode.HIERARCHICAL_CACHE,
        ),
        Panel(
            title="Dropped tokens per second",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[
                Query(
                    _cache_rate(sglang.HICACHE_DROPPED_TOKENS_TOTAL),
                    "dropped {{model_name}}",
                ),
                Query(
                    _cache_rate(sglang.HICACHE_BACKUP_DROPPED_TOKENS_TOTAL),
                    "not written {{model_name}}",
                ),
            ],
            description="Is the host pool too small, or the storage too slow? Dropped tokens must "
            "be computed again.",
            needs=Mode.HIERARCHICAL_CACHE,
        ),
        Panel(
            title="Prefetched tokens per second",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[
                Query(_rate(sglang.PREFETCHED_TOKENS_TOTAL), "prefetched {{model_name}}"),
                Query(
                    _rate(sglang.STORAGE_PREFETCH_HIT_TOKENS_TOTAL),
                    "found {{model_name}}",
                ),
                Query(
                    _rate(sglang.STORAGE_PREFETCH_UNFULFILLED_TOKENS_TOTAL),
                    "not in time {{model_name}}",
                ),
            ],
            description="Does the storage backend deliver what requests need? Tokens that are "
            "found and do not arrive in time point to slow storage.",
            needs=Mode.CACHE_STORAGE,
        ),
    ],
)

_SPECULATIVE: Final = Row(
    "Speculative decoding",
    [
        Panel(
            title="Accepted share of drafts",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"avg by (model_name) ({sglang.SPEC_ACCEPT_RATE}{{{RANKS}}}) and {_DRAFTS}",
                    "{{model_name}}",
                )
            ],
            description="Is the draft model a good one for this traffic? A low share makes "
            "decoding slower than without drafts.",
            needs=Mode.SPECULATIVE,
            maximum=1,
        ),
        Panel(
            title="Tokens per step",
            unit=Unit.TOKENS,
            queries=[
                Query(
                    f"avg by (model_name) ({sglang.SPEC_ACCEPT_LENGTH}{{{RANKS}}}) and {_DRAFTS}",
                    "accepted {{model_name}}",
                ),
                Query(
                    _DRAFTS,
                    "drafted {{model_name}}",
                ),
            ],
            description="How many tokens does a step yield? 1 is decoding without drafts; far "
            "more drafted than accepted tokens is wasted work: draft fewer.",
            needs=Mode.SPECULATIVE,
        ),
        Panel(
            title="Verifications per second",
            unit=Unit.PER_SECOND,
            queries=[
                Query(
                    events(sglang.SPEC_VERIFY_CALLS_TOTAL, REQUESTS, present=_DRAFTS),
                    "{{model_name}}",
                )
            ],
            description="Are drafts in use at all? 0 under traffic: speculative decoding was "
            "turned off, for example for large batches.",
            needs=Mode.SPECULATIVE,
        ),
    ],
)

_LORA: Final = Row(
    "LoRA",
    [
        Panel(
            title="Adapter slots",
            unit=Unit.NUMBER,
            queries=[
                Query(gauge(sglang.LORA_POOL_SLOTS_USED), "used {{model_name}}"),
                Query(gauge(sglang.LORA_POOL_SLOTS_TOTAL), "slots {{model_name}}"),
            ],
            description="Do all adapters in use fit on the device? If all slots are used, "
            "requests wait for adapters that are loaded again and again: raise "
            "--max-loras-per-batch.",
            needs=Mode.LORA,
        ),
    ],
)

FEATURES: Final[Sequence[Row]] = (_HIERARCHICAL_CACHE, _SPECULATIVE, _LORA)
