"""Parts of PromQL queries for SGLang's families.

Data-parallel ranks are added up. Ranks of any other parallelism report the same values, so each
value counts once, as in `ranks`; a node whose ranks repeat those of node 0 has the label
`node_rank`. Where prefill and decode are apart, both engines count a request: it counts where it is
answered. Of a gauge with priorities, the series without a priority is the total.
"""

from __future__ import annotations

from typing import Final

from dynamometer.engines.sglang_names import sglang
from dynamometer.names import labels
from dynamometer.panels import OF_ENGINE, Variable, rate

# Series of requests; those of the engines that answer them; series of the ranks that compute them;
# gauges that may have priorities; of the tokens by mode, all of prompts, and those that the prefix
# cache had.
REQUESTS: Final = 'model_name=~"$model", instance=~"$instance", node_rank=""'
ANSWERED: Final = f'{REQUESTS}, engine_type!="prefill"'
RANKS: Final = f'{REQUESTS}, dp_rank=~"$rank"'
TOTALS: Final = f'{RANKS}, priority=""'
# The caches of ranks, whose families do not have the model.
CACHES: Final = 'instance=~"$instance", dp_rank=~"$rank", node_rank=""'
PREFILL: Final = f'{RANKS}, mode=~"prefill_.+"'
CACHED: Final = f'{RANKS}, mode="prefill_cache"'

EXCEPT_PREFILL: Final = (
    f'unless on ({OF_ENGINE}) {sglang.NUM_RUNNING_REQS}{{engine_type="prefill"}}'
)
"""An operator that excludes the prefill side from families that do not know sides."""

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
    """Return the sum over all ranks, by one label or several."""
    return f"sum by ({by}) ({once(expr)})"


def with_side(expr: str, matchers: str = REQUESTS) -> str:
    """Return the values of engines with `engine_type`: `prefill`, `decode` or `unified`.

    Args:
        expr: one series for each engine.
        matchers: the selected engines.
    """
    return _with(labels.ENGINE_TYPE, expr, matchers)


def with_model(expr: str) -> str:
    """Return the values of the engines of the selected models, with `model_name`."""
    return _with(labels.MODEL_NAME, expr, REQUESTS)


def _with(label: str, expr: str, matchers: str) -> str:
    engines = f"group by ({OF_ENGINE}, {label}) ({sglang.NUM_RUNNING_REQS}{{{matchers}}})"
    return f"{expr} * on ({OF_ENGINE}) group_left ({label}) {engines}"


def gauge(family: str, matchers: str = RANKS) -> str:
    """Return the sum of a gauge over all ranks, by model."""
    return total(f"{family}{{{matchers}}}")


_PRESENT: Final = gauge(sglang.NUM_RUNNING_REQS, TOTALS)


def events(
    family: str,
    matchers: str = RANKS,
    *,
    present: str = _PRESENT,
    by: str = labels.MODEL_NAME,
) -> str:
    """Return the rate of a counter that SGLang creates at the first event; 0 before.

    Args:
        family: the counter.
        matchers: the selected series.
        present: an expression, by the same labels, that has a value wherever the event can occur.
        by: the labels of the result.
    """
    return f"{total(rate(family, matchers), by=by)} or 0 * {present}"


def cache_events(family: str, *, present: str = _PRESENT) -> str:
    """Return the rate of a counter of the ranks' caches, by model; see `events`."""
    return f"{total(with_model(rate(family, CACHES)))} or 0 * {present}"
