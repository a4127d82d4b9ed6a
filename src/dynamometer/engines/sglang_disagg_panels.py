"""The dashboard of prefill and decode apart: both sides, and the transfer between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dynamometer.engines.sglang_names import sglang
from dynamometer.engines.sglang_queries import (
    RANKS,
    REQUESTS,
    TOTALS,
    VARIABLES,
    events,
    gauge,
    total,
    with_side,
)
from dynamometer.names import engine_load, frontend_resilience, labels
from dynamometer.panels import (
    ENGINE_PAGES,
    OF_ENGINE,
    Dashboard,
    Mode,
    Page,
    Panel,
    Query,
    Row,
    Unit,
    mean,
    quantiles,
    rate,
)

_PAIRED: Final = 'engine_type=~"prefill|decode"'
_ON_PREFILL: Final = f'{RANKS}, engine_type="prefill"'
_ON_DECODE: Final = f'{RANKS}, engine_type="decode"'
_ANSWERS: Final = f'{REQUESTS}, engine_type="decode"'
_BY_SIDE: Final = "model_name, engine_type"
_MODEL_LEGEND: Final = "{{model_name}}"

# The series of `events` that have a value on one side, and on each side.
_PREFILL_PRESENT, _DECODE_PRESENT = (
    gauge(sglang.NUM_RUNNING_REQS, f'{TOTALS}, engine_type="{side}"')
    for side in ("prefill", "decode")
)
_SIDES_PRESENT: Final = total(f"{sglang.NUM_RUNNING_REQS}{{{TOTALS}, {_PAIRED}}}", by=_BY_SIDE)


def _panel(
    title: str,
    unit: Unit,
    queries: Sequence[Query],
    description: str,
    *,
    pages: frozenset[Page] = ENGINE_PAGES,
    bad_from: float | None = None,
    maximum: float | None = None,
    stacked: bool = False,
) -> Panel:
    return Panel(
        title=title,
        unit=unit,
        queries=queries,
        description=description,
        pages=pages,
        needs=Mode.DISAGGREGATION,
        bad_from=bad_from,
        maximum=maximum,
        stacked=stacked,
    )


def _requests(side: str, **families: str) -> Sequence[Query]:
    """Return the requests in each place of a side; each request is in one place at a time."""
    return [
        Query(gauge(family, f'{TOTALS}, engine_type="{side}"'), f"{place} {_MODEL_LEGEND}")
        for place, family in families.items()
    ]


def _failures(family: str) -> str:
    return events(family, f"{RANKS}, {_PAIRED}", present=_SIDES_PRESENT, by=_BY_SIDE)


_SIDES: Final = Row(
    "Are both sides there",
    [
        _panel(
            "Workers by side and state",
            Unit.NUMBER,
            [
                Query(
                    "max by (model, mode, state) "
                    f'({frontend_resilience.WORKERS}{{model=~"$model", mode=~"prefill|decode"}})',
                    "{{model}} {{mode}} {{state}}",
                )
            ],
            "Does each model have a ready worker on both sides? Without one of them no request is "
            "answered, and the frontend is not ready.",
            pages=frozenset({Page.FRONTEND}),
        ),
        _panel(
            "Engines by side",
            Unit.NUMBER,
            [
                Query(
                    f"count by ({_BY_SIDE}) (group by ({_BY_SIDE}, {OF_ENGINE}) "
                    f"({sglang.NUM_RUNNING_REQS}{{{REQUESTS}, {_PAIRED}}}))",
                    "{{model_name}} {{engine_type}}",
                )
            ],
            "How many engines does each side have? Engines whose page has SGLang's families, in "
            "whatever state.",
            stacked=True,
        ),
        _panel(
            "Queued requests by side",
            Unit.REQUESTS,
            [
                Query(
                    "sum by (model, engine_type) ("
                    + with_side(
                        f'{engine_load.QUEUED_REQUESTS}{{model=~"$model", instance=~"$instance"}}',
                        _PAIRED,
                    )
                    + ")",
                    "{{model}} {{engine_type}}",
                )
            ],
            "On which side do requests wait? A request waits on both sides until its KV cache is "
            "transferred. Both queues grow: the decode side has no room, or the sides do not reach "
            "each other. These values are current while SGLang's own gauges stand still.",
        ),
        _panel(
            "Requests on the prefill side",
            Unit.REQUESTS,
            _requests(
                "prefill",
                bootstrap=sglang.NUM_PREFILL_BOOTSTRAP_QUEUE_REQS,
                queued=sglang.NUM_QUEUE_REQS,
                transfer=sglang.NUM_PREFILL_INFLIGHT_QUEUE_REQS,
            ),
            "Which step of the prefill side is slow? bootstrap waits for room on the decode side, "
            "queued for the prefill itself, transfer for the end of the transfer. SGLang updates "
            "these gauges with its batches: they may stand still while all requests wait.",
            stacked=True,
        ),
        _panel(
            "Requests on the decode side",
            Unit.REQUESTS,
            _requests(
                "decode",
                allocation=sglang.NUM_DECODE_PREALLOC_QUEUE_REQS,
                transfer=sglang.NUM_DECODE_TRANSFER_QUEUE_REQS,
                queued=sglang.NUM_QUEUE_REQS,
                running=sglang.NUM_RUNNING_REQS,
            ),
            "Which step of the decode side is slow? allocation waits for room in the KV pool, "
            "transfer for the prefill side, which computes the prompt and sends its KV cache. Many "
            "in transfer: the prefill side is the slower one.",
            stacked=True,
        ),
        _panel(
            "KV pool held by arriving requests",
            Unit.RATIO,
            [
                Query(
                    f"max by (model_name) ({sglang.PREALLOC_FULL_TOKEN_USAGE}{{{_ON_DECODE}}})",
                    _MODEL_LEGEND,
                )
            ],
            "Which share of the decode side's pool waits for its content? A large share is memory "
            "that no request uses yet: speed up the prefill side, or send fewer requests at once.",
            maximum=1,
        ),
    ],
)

_FIRST_TOKEN: Final = Row(
    "Where the first token spends its time",
    [
        _panel(
            "Time to first token",
            Unit.SECONDS,
            quantiles(sglang.TIME_TO_FIRST_TOKEN_SECONDS, _ANSWERS),
            "How long do users wait for the first token? Only the decode side measures it, with "
            "all steps of both sides: the next two panels have them.",
        ),
        _panel(
            "Mean time by step, prefill side",
            Unit.SECONDS,
            [
                Query(
                    mean(
                        sglang.PER_STAGE_REQ_LATENCY_SECONDS,
                        f'{_ON_PREFILL}, stage=~"prefill_(bootstrap|forward|transfer_kv_cache)"',
                        by=labels.STAGE,
                    ),
                    "{{stage}}",
                ),
                Query(
                    mean(sglang.QUEUE_TIME_SECONDS, _ON_PREFILL, by=labels.MODEL_NAME),
                    "queue {{model_name}}",
                ),
            ],
            "Which step of the prefill side takes the time? prefill_bootstrap: the decode side has "
            "no room; queue: too many prompts; prefill_forward: long prompts; "
            "prefill_transfer_kv_cache: the network.",
            stacked=True,
        ),
        _panel(
            "Mean time by step, decode side",
            Unit.SECONDS,
            [
                Query(
                    mean(
                        sglang.PER_STAGE_REQ_LATENCY_SECONDS,
                        f'{_ON_DECODE}, stage=~"decode_(prepare|bootstrap|transferred|waiting)"',
                        by=labels.STAGE,
                    ),
                    "{{stage}}",
                )
            ],
            "Which step of the decode side takes the time? decode_bootstrap finds the prefill side "
            "and allocates; decode_transferred is the whole prefill side and the transfer; "
            "decode_waiting: the decode batch is full.",
            stacked=True,
        ),
        _panel(
            "Transfer latency",
            Unit.MILLISECONDS,
            quantiles(sglang.KV_TRANSFER_LATENCY_MS, _ON_PREFILL),
            "How long does the transfer of the KV cache take? From the end of the prefill to the "
            "last byte; of a prompt in chunks, the last chunk. It grows with long prompts.",
        ),
        _panel(
            "Bootstrap time by side",
            Unit.MILLISECONDS,
            quantiles(
                sglang.KV_TRANSFER_BOOTSTRAP_MS, f"{RANKS}, {_PAIRED}", by=labels.ENGINE_TYPE
            ),
            "How long until the two sides know each other? prefill waits for the decode side's "
            "addresses; decode finds the prefill side, which is slow at first contact only.",
        ),
        _panel(
            "Allocation time by side",
            Unit.MILLISECONDS,
            quantiles(sglang.KV_TRANSFER_ALLOC_MS, f"{RANKS}, {_PAIRED}", by=labels.ENGINE_TYPE),
            "How long do requests wait for memory? decode: for room in its KV pool, so a growing "
            "value means that it is full. prefill: for its own buffers.",
        ),
    ],
)

_TRANSFER: Final = Row(
    "Transfer of the KV cache",
    [
        _panel(
            "Transfer speed",
            Unit.GIBIBYTES_PER_SECOND,
            [
                Query(
                    mean(sglang.KV_TRANSFER_SPEED_GB_S, _ON_PREFILL, by=labels.MODEL_NAME),
                    _MODEL_LEGEND,
                )
            ],
            "How fast is one transfer, on average? Far below the network's speed with short "
            "prompts, because each transfer has a fixed cost. A fall with equal load: the network.",
        ),
        _panel(
            "Transferred data per second",
            Unit.MEBIBYTES_PER_SECOND,
            [Query(total(rate(f"{sglang.KV_TRANSFER_TOTAL_MB}_sum", _ON_PREFILL)), _MODEL_LEGEND)],
            "How much of the network do all transfers use? Close to its capacity, transfers wait "
            "for each other.",
        ),
        _panel(
            "Transferred data per request",
            Unit.MEBIBYTES,
            [
                Query(
                    mean(sglang.KV_TRANSFER_TOTAL_MB, _ON_PREFILL, by=labels.MODEL_NAME),
                    _MODEL_LEGEND,
                )
            ],
            "How much KV cache does a request have? It follows the length of prompts, whether or "
            "not the prefix cache had a part of them.",
        ),
        _panel(
            "Transfers and answers per second",
            Unit.REQUESTS_PER_SECOND,
            [
                Query(
                    total(rate(f"{sglang.KV_TRANSFER_TOTAL_MB}_count", _ON_PREFILL)),
                    "transfers {{model_name}}",
                ),
                Query(
                    f"sum by (model_name) ({rate(sglang.NUM_REQUESTS_TOTAL, _ANSWERS)})",
                    "answers {{model_name}}",
                ),
            ],
            "Is each transferred request answered? More transfers than answers for long: answers "
            "take longer, or their clients cancel them.",
        ),
    ],
)

_FAILURES: Final = Row(
    "Failures between the sides",
    [
        _panel(
            "Failed requests by side",
            Unit.REQUESTS_PER_SECOND,
            [
                Query(
                    _failures(sglang.NUM_BOOTSTRAP_FAILED_REQS_TOTAL),
                    "bootstrap {{model_name}} {{engine_type}}",
                ),
                Query(
                    _failures(sglang.NUM_TRANSFER_FAILED_REQS_TOTAL),
                    "transfer {{model_name}} {{engine_type}}",
                ),
            ],
            "Do requests fail between the two sides? bootstrap: a side did not find the other one "
            "in time; transfer: the KV cache did not arrive. Clients that cancel count, too. One "
            "request may count on both sides.",
        ),
        _panel(
            "Retries and retractions per second",
            Unit.REQUESTS_PER_SECOND,
            [
                Query(
                    events(sglang.NUM_PREFILL_RETRIES_TOTAL, _ON_PREFILL, present=_PREFILL_PRESENT),
                    "prefill again {{model_name}}",
                ),
                Query(
                    events(
                        sglang.NUM_RETRACTED_REQUESTS_TOTAL, _ON_DECODE, present=_DECODE_PRESENT
                    ),
                    "retracted {{model_name}}",
                ),
            ],
            "Is work done twice? A retracted request of the decode side returns to its queue: the "
            "KV pool is too small for so many requests.",
        ),
        _panel(
            "Releases that wait for a transfer",
            Unit.REQUESTS,
            [Query(gauge(sglang.NUM_DECODE_DEFERRED_KV_RELEASE_REQS, _ON_DECODE), _MODEL_LEGEND)],
            "Do failed requests hold memory? Their KV cache is freed when the prefill side has "
            "stopped writing to it. Above 0 for long: the prefill side does not answer.",
            bad_from=1,
        ),
    ],
)

DISAGGREGATION: Final = Dashboard(
    uid="dynamometer-disaggregation",
    title="Disaggregation",
    description="Prefill and decode apart: both sides, the steps of the first token, the transfer "
    "of the KV cache, and failures between the sides.",
    variables=VARIABLES,
    rows=[_SIDES, _FIRST_TOKEN, _TRANSFER, _FAILURES],
    needs=Mode.DISAGGREGATION,
)
