"""The dashboard that compares instances, ranks and models, and shows their skew."""

from __future__ import annotations

from typing import Final

from dynamometer.engines.sglang_names import sglang
from dynamometer.engines.sglang_queries import (
    CACHED,
    EXCEPT_PREFILL,
    PREFILL,
    RANKS,
    REQUESTS,
    TOTALS,
    VARIABLES,
    once,
    with_side,
)
from dynamometer.names import build, engine_load, fleet, labels
from dynamometer.panels import (
    ENGINE_LEGEND,
    OF_ENGINE,
    Dashboard,
    Mode,
    Page,
    Panel,
    Query,
    Row,
    Unit,
    rate,
)

_RANK: Final = f"{OF_ENGINE}, dp_rank"
_RANK_LEGEND: Final = f"{ENGINE_LEGEND} {{{{dp_rank}}}}"
_MODEL_LEGEND: Final = "{{model_name}}"
# Values without the delay of SGLang's own gauges: see docs/metrics.md, "Stale values".
_LOAD: Final = 'model=~"$model", instance=~"$instance"'
_RANK_LOAD: Final = f'{_LOAD}, dp_rank=~"$rank"'
_ANSWERS: Final = f'{RANKS}, mode="decode"'

_USAGE: Final = with_side(f"{engine_load.KV_USAGE_RATIO}{{{_LOAD}}}")
_TOKENS: Final = once(rate(sglang.REALTIME_TOKENS_TOTAL, _ANSWERS))


def _by(names: str, expr: str) -> str:
    return f"sum by ({names}) ({expr})"


def _skew(by: str, expr: str) -> str:
    """Return the largest value divided by the mean, for each value of the labels `by`."""
    return f"max by ({by}) ({expr}) / avg by ({by}) ({expr})"


_INSTANCES: Final = Row(
    "By instance",
    [
        Panel(
            title="Running requests by instance",
            unit=Unit.REQUESTS,
            queries=[
                Query(_by(OF_ENGINE, f"{engine_load.RUNNING_REQUESTS}{{{_LOAD}}}"), ENGINE_LEGEND)
            ],
            description="Does the router spread the load? Instances of one model should have "
            "similar numbers.",
            stacked=True,
        ),
        Panel(
            title="Queued requests by instance",
            unit=Unit.REQUESTS,
            queries=[
                Query(_by(OF_ENGINE, f"{engine_load.QUEUED_REQUESTS}{{{_LOAD}}}"), ENGINE_LEGEND)
            ],
            description="Where do requests wait? One instance with a queue beside others without "
            "one: the router does not see the load. All of them: add instances.",
            stacked=True,
        ),
        Panel(
            title="KV pool held by instance",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"max by ({OF_ENGINE}) ({engine_load.KV_USAGE_RATIO}{{{_LOAD}}})",
                    ENGINE_LEGEND,
                )
            ],
            description="Which instance is full? From 0.95 on, its requests wait; the dashboard "
            "Engine shows what holds the pool.",
            bad_from=0.95,
            maximum=1,
        ),
        Panel(
            title="Answer tokens by instance",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[Query(_by(OF_ENGINE, _TOKENS), ENGINE_LEGEND)],
            description="How much does each instance generate now? One that is slower with as "
            "many requests has a slower machine, or shares one.",
            stacked=True,
        ),
        Panel(
            title="Time to first token by instance, p90",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    f"histogram_quantile(0.9, sum by (le, {OF_ENGINE}) "
                    f"({rate(f'{sglang.TIME_TO_FIRST_TOKEN_SECONDS}_bucket', REQUESTS)}))",
                    ENGINE_LEGEND,
                )
            ],
            description="Does one instance make users wait? Compare its queue and its KV pool.",
        ),
        Panel(
            title="Prefix cache hit rate by instance",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"{_by(OF_ENGINE, once(rate(sglang.REALTIME_TOKENS_TOTAL, CACHED)))} / "
                    f"{_by(OF_ENGINE, once(rate(sglang.REALTIME_TOKENS_TOTAL, PREFILL)))}",
                    ENGINE_LEGEND,
                )
            ],
            description="Does each instance know the prefixes of its requests? Low everywhere: "
            "requests with the same beginning reach different instances.",
            maximum=1,
        ),
    ],
)

_RANKS: Final = Row(
    "By rank",
    [
        Panel(
            title="Running requests by rank",
            unit=Unit.REQUESTS,
            queries=[
                Query(
                    _by(_RANK, f"{engine_load.RANK_RUNNING_REQUESTS}{{{_RANK_LOAD}}}"),
                    _RANK_LEGEND,
                )
            ],
            description="Do all data-parallel ranks work? With --dp-size 1 there is one rank.",
        ),
        Panel(
            title="Queued requests by rank",
            unit=Unit.REQUESTS,
            queries=[
                Query(
                    _by(_RANK, f"{engine_load.RANK_QUEUED_REQUESTS}{{{_RANK_LOAD}}}"), _RANK_LEGEND
                )
            ],
            description="Does one rank have a queue of its own? Then SGLang's balancing between "
            "ranks does not fit the traffic (--load-balance-method).",
        ),
        Panel(
            title="KV pool held by rank",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"max by ({_RANK}) ({engine_load.RANK_KV_USAGE_RATIO}{{{_RANK_LOAD}}})",
                    _RANK_LEGEND,
                )
            ],
            description="Which rank is full? A full rank retracts requests while others have room.",
            bad_from=0.95,
            maximum=1,
        ),
        Panel(
            title="Answer tokens by rank",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[Query(_by(_RANK, _TOKENS), _RANK_LEGEND)],
            description="How much does each rank generate now? 0 beside busy ranks: a rank that "
            "hangs, or that gets no requests.",
        ),
    ],
)

_MODELS: Final = Row(
    "By model",
    [
        Panel(
            title="Instances by model",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    "count by (model_name) "
                    f"(sum by (model_name, {OF_ENGINE}) ({sglang.NUM_RUNNING_REQS}{{{TOTALS}}}))",
                    _MODEL_LEGEND,
                )
            ],
            description="How many instances have each model? Engines whose page has SGLang's "
            "families, in whatever state.",
        ),
        Panel(
            title="Requests by model",
            unit=Unit.REQUESTS,
            queries=[
                Query(
                    _by("model", f"{engine_load.RUNNING_REQUESTS}{{{_LOAD}}} {EXCEPT_PREFILL}"),
                    "running {{model}}",
                ),
                Query(
                    _by("model", f"{engine_load.QUEUED_REQUESTS}{{{_LOAD}}} {EXCEPT_PREFILL}"),
                    "queued {{model}}",
                ),
            ],
            description="Which model needs more instances? The one with a queue: its requests "
            "wait although all of its instances work. With prefill and decode apart, those of the "
            "decode side, which has each request from its start to its end.",
        ),
        Panel(
            title="Answer tokens by model",
            unit=Unit.TOKENS_PER_SECOND,
            queries=[Query(_by(labels.MODEL_NAME, _TOKENS), _MODEL_LEGEND)],
            description="Which model does the fleet work for? All instances and ranks, added up.",
            stacked=True,
        ),
    ],
)

_SKEWS: Final = Row(
    "Skew: largest value, divided by the mean",
    [
        Panel(
            title="Skew of running requests",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    _skew(
                        "model, engine_type",
                        with_side(f"{engine_load.RUNNING_REQUESTS}{{{_LOAD}}}"),
                    ),
                    "{{model}} {{engine_type}}",
                )
            ],
            description="Is the load of a model's instances equal? 1: equal; 2: one instance has "
            "twice the mean. With few requests it is always high; without a request it is missing.",
        ),
        Panel(
            title="Skew of answer tokens",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    _skew(labels.MODEL_NAME, _by(f"model_name, {OF_ENGINE}", _TOKENS)),
                    _MODEL_LEGEND,
                )
            ],
            description="Is the work of a model's instances equal? Far from 1 with equal "
            "requests: some instances are slower, or their answers longer.",
            bad_from=2,
        ),
        Panel(
            title="Skew of tokens between ranks",
            unit=Unit.NUMBER,
            queries=[Query(_skew(OF_ENGINE, _by(_RANK, _TOKENS)), ENGINE_LEGEND)],
            description="Is the work of an instance's ranks equal? With data-parallel attention, "
            "all ranks wait for the one with most tokens. 1 with one rank.",
            bad_from=2,
        ),
        Panel(
            title="KV pool: fullest minus emptiest",
            unit=Unit.RATIO,
            queries=[
                Query(
                    f"max by (model, engine_type) ({_USAGE}) - "
                    f"min by (model, engine_type) ({_USAGE})",
                    "{{model}} {{engine_type}}",
                )
            ],
            description="Is one instance full while another has room? A large gap with queued "
            "requests: try --router-mode least-loaded.",
            maximum=1,
        ),
    ],
)

_MEMBERS: Final = Row(
    "Members",
    [
        Panel(
            title="Versions",
            unit=Unit.NUMBER,
            queries=[
                Query(
                    f'count by (engine, engine_version) ({build.INFO}{{instance=~"$instance"}})',
                    "{{engine}} {{engine_version}}",
                )
            ],
            description="Do all workers run the same version of the engine? Two versions at once "
            "are a rolling restart, or one that was forgotten.",
            pages=frozenset({Page.WORKER}),
            stacked=True,
        ),
        Panel(
            title="Pages of the fleet",
            unit=Unit.NUMBER,
            queries=[
                Query(f'{fleet.UP}{{instance=~"$instance"}}', ENGINE_LEGEND),
            ],
            description="Which workers are part of /engine_metrics? 0: the worker was late, and "
            "its series are missing.",
            pages=frozenset({Page.FLEET}),
            needs=Mode.FLEET_PAGE,
            bad_below=1,
        ),
        Panel(
            title="Age of the fleet's pages",
            unit=Unit.SECONDS,
            queries=[
                Query(
                    f'time() - {fleet.LAST_SUCCESS_TIMESTAMP_SECONDS}{{instance=~"$instance"}}',
                    ENGINE_LEGEND,
                )
            ],
            description="How old is what /engine_metrics shows of each worker? Some seconds; a "
            "line that climbs is a worker that does not answer.",
            pages=frozenset({Page.FLEET}),
            needs=Mode.FLEET_PAGE,
            bad_from=30,
        ),
    ],
)

FLEET: Final = Dashboard(
    uid="dynamometer-fleet",
    title="Fleet",
    description="Instances, ranks and models beside each other, and their skew.",
    variables=VARIABLES,
    rows=[_INSTANCES, _RANKS, _MODELS, _SKEWS, _MEMBERS],
)
