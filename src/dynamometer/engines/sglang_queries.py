"""Parts of PromQL queries for SGLang's families.

Data-parallel ranks are added up. Ranks of any other parallelism report the same values, so each
value counts once, as in `ranks`. Of a gauge with priorities, the series without a priority is the
total.
"""

from __future__ import annotations

from typing import Final

from dynamometer.engines.sglang_names import sglang
from dynamometer.names import labels
from dynamometer.panels import Variable, rate

# Series of requests; series of the ranks that compute them; gauges that may have priorities; of the
# tokens by mode, all of prompts, and those that the prefix cache had.
REQUESTS: Final = 'model_name=~"$model", instance=~"$instance"'
RANKS: Final = f'{REQUESTS}, dp_rank=~"$rank"'
TOTALS: Final = f'{RANKS}, priority=""'
# The caches of ranks, whose families do not have the model.
CACHES: Final = 'instance=~"$instance", dp_rank=~"$rank"'
PREFILL: Final = f'{RANKS}, mode=~"prefill_.+"'
CACHED: Final = f'{RANKS}, mode="prefill_cache"'

VARIABLES: Final = (
    Variable("model", "Model", sglang.NUM_RUNNING_REQS, labels.MODEL_NAME),
    Variable(
        "instance", "Instance", f'{sglang.NUM_RUNNING_REQS}{{model_name=~"$model"}}', "instance"
    ),
    Variable("rank", "Rank", f"{sglang.NUM_RUNNING_REQS}{{{REQUESTS}}}", labels.DP_RANK),
)


def once(expr: str) -> str:
    """Return one value of each data-parallel rank."""
    return f"max without (tp_rank, pp_rank, moe_ep_rank, pid) ({expr})"


def total(expr: str, *, by: str = labels.MODEL_NAME) -> str:
    """Return the sum over all ranks, by one label."""
    return f"sum by ({by}) ({once(expr)})"


def with_model(expr: str) -> str:
    """Return the values of the engines of the selected models, with `model_name`.

    Args:
        expr: series of families that have the engine, but not its model.
    """
    engines = (
        f"group by (instance, worker_id, model_name) ({sglang.NUM_RUNNING_REQS}{{{REQUESTS}}})"
    )
    return f"{expr} * on (instance, worker_id) group_left (model_name) {engines}"


def gauge(family: str, matchers: str = RANKS) -> str:
    """Return the sum of a gauge over all ranks, by model."""
    return total(f"{family}{{{matchers}}}")


_PRESENT: Final = gauge(sglang.NUM_RUNNING_REQS, TOTALS)


def events(family: str, matchers: str = RANKS, *, present: str = _PRESENT) -> str:
    """Return the rate of a counter that SGLang creates at the first event; 0 before.

    Args:
        family: the counter.
        matchers: the selected series.
        present: an expression, by model, that has a value wherever the event can occur.
    """
    return f"{total(rate(family, matchers))} or 0 * {present}"


def cache_events(family: str, *, present: str = _PRESENT) -> str:
    """Return the same for a counter of the ranks' caches, by model."""
    return f"{total(with_model(rate(family, CACHES)))} or 0 * {present}"
