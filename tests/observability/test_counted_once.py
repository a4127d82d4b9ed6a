"""A panel counts each request once, whether one engine, a pair, or two nodes serve it.

Three fleets have the same traffic: one engine; a prefill and a decode engine; two nodes whose
tensor-parallel ranks report the same values. promtool evaluates the panels' queries on the series
of each fleet, and compares the results.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dynamometer.observability.dashboards import DASHBOARDS
from dynamometer.panels import Panel

FLEETS = ("one", "pair", "nodes")
# One request each 15 s, with 10 tokens of prompt, of which the cache has 4, and 20 of answer.
ONCE, TOKENS, CACHED, ANSWER = "0+1x40", "0+10x40", "0+4x40", "0+20x40"
# Titles of the panels that add up what both engines of a pair, or both nodes, report.
PANELS = {
    "Engine": (
        "Time to first token",
        "End-to-end latency",
        "Tokens per request",
        "Tokens per second",
        "Requests per second",
        "Running and queued requests",
        "HTTP responses per second",
        "Prefix cache hit rate",
        "Retractions and aborts per second",
        "Evicted tokens per second",
    ),
    "Fleet": (
        "Answer tokens by model",
        "Requests by model",
        "Skew of running requests",
        "Skew of answer tokens",
        "KV pool: fullest minus emptiest",
    ),
    "Runtime": ("Request duration at workers", "Time to first byte in the worker"),
}


def panels() -> Iterator[tuple[str, Panel]]:
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            if panel.title in PANELS.get(dashboard.title, ()):
                yield dashboard.title, panel


def series(fleet: str) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Return the name, labels and values of each series of a fleet."""
    if fleet == "one":
        yield from worker(fleet, "1a", "unified", "aggregated")
        yield from scheduler(fleet, "1a", "unified")
        yield from server(fleet, "1a", "unified", answer=ANSWER, seconds="8")
    elif fleet == "pair":
        yield from worker(fleet, "1a", "prefill", "prefill", seconds="1")
        yield from scheduler(fleet, "1a", "prefill", running="0", queued="3")
        yield from server(fleet, "1a", "prefill", answer=ONCE, seconds="1")
        yield from worker(fleet, "2b", "decode", "decode")
        yield from scheduler(fleet, "2b", "decode")
        yield from server(fleet, "2b", "decode", answer=ANSWER, seconds="8")
    else:
        yield from worker(fleet, "1a", "unified", "aggregated")
        yield from scheduler(fleet, "1a", "unified")
        yield from server(fleet, "1a", "unified", answer=ANSWER, seconds="8")
        follower = {"node_rank": "1", "tp_rank": "1"}
        yield from scheduler(fleet, "2b", "unified", derived=False, **follower)


def labels_of(fleet: str, worker_id: str, engine_type: str = "") -> Mapping[str, str]:
    own = {"instance": f"{fleet}:{worker_id}", "worker_id": worker_id, "model": fleet}
    return {**own, "model_name": fleet, "engine_type": engine_type} if engine_type else own


def worker(
    fleet: str, worker_id: str, engine_type: str, mode: str, *, seconds: str = "8"
) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Return the worker's own families."""
    own = labels_of(fleet, worker_id)
    yield "dynamometer_worker_info", {**own, "mode": mode, "node_rank": "0"}, "1x40"
    for name in (
        "dynamo_component_request_duration_seconds",
        "dynamo_work_handler_time_to_first_response_seconds",
    ):
        yield from histogram(name, own, seconds)


def scheduler(
    fleet: str,
    worker_id: str,
    engine_type: str,
    *,
    running: str = "2",
    queued: str = "3",
    derived: bool = True,
    **further: str,
) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Return the families of the engine's ranks, and the load that is derived from them."""
    own = labels_of(fleet, worker_id)
    rank = {**labels_of(fleet, worker_id, engine_type), "tp_rank": "0", **further}
    tokens: dict[str, str] = {}
    if engine_type != "decode":
        tokens |= {"prefill_compute": "0+6x40", "prefill_cache": CACHED}
    if engine_type != "prefill":
        tokens |= {"decode": ANSWER}
    yield "sglang:num_running_reqs", rank, f"{running}x40"
    yield "sglang:num_queue_reqs", rank, "0x40" if engine_type == "prefill" else "3x40"
    for mode, values in tokens.items():
        yield "sglang:realtime_tokens_total", {**rank, "mode": mode}, values
    if engine_type != "decode":
        cache = {"tp_rank": "0", **further, "dp_rank": "0"}
        yield "sglang:evicted_tokens_total", {**own, **cache}, CACHED
    if engine_type != "prefill":
        yield "sglang:num_retracted_requests_total", rank, ONCE
    if derived:
        yield "dynamometer_engine_running_requests", own, f"{running}x40"
        yield "dynamometer_engine_queued_requests", own, f"{queued}x40"
        ratio = "0.9x40" if engine_type == "prefill" else "0.2x40"
        yield "dynamometer_engine_kv_usage_ratio", own, ratio


def server(
    fleet: str, worker_id: str, engine_type: str, *, answer: str, seconds: str
) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Return the families of the engine's HTTP server."""
    own = labels_of(fleet, worker_id, engine_type)
    for name, values in (("prompt", TOKENS), ("generation", answer)):
        yield f"sglang:{name}_tokens_histogram_sum", own, values
        yield f"sglang:{name}_tokens_histogram_count", own, ONCE
    yield "sglang:num_requests_total", own, ONCE
    yield "sglang:num_aborted_requests_total", own, ONCE
    yield from histogram("sglang:e2e_request_latency_seconds", own, seconds)
    if engine_type != "prefill":
        yield from histogram("sglang:time_to_first_token_seconds", own, "1")
    yield "sglang:http_responses_total", {**labels_of(fleet, worker_id), "status_code": "200"}, ONCE


def histogram(
    name: str, own: Mapping[str, str], seconds: str
) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Return the buckets of a histogram whose observations are all just below `seconds`."""
    for bound in ("0.5", "1", "8", "+Inf"):
        counted = ONCE if float(bound) >= float(seconds) else "0x40"
        yield f"{name}_bucket", {**own, "le": bound}, counted


def filled(expr: str, fleet: str) -> str:
    """Return the value of a query on a dashboard that shows one fleet.

    Of skews and gaps, the largest one: a side without requests has none.
    """
    values = {"$model": fleet, "$instance": f"{fleet}:.+", "$rank": ".*", "$__rate_interval": "5m"}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    return f"max({expr})" if " by (model, engine_type) " in expr else f"sum({expr})"


@pytest.mark.parametrize("fleet", FLEETS[1:])
@pytest.mark.parametrize(
    "panel",
    [pytest.param(panel, id=f"{name}: {panel.title}") for name, panel in panels()],
)
def test_a_panel_shows_the_same_as_for_one_engine(panel: Panel, fleet: str, tmp_path: Path) -> None:
    shown = [
        {"series": f"{name}{{{_matchers(own)}}}", "values": values}
        for one in FLEETS
        for name, own, values in series(one)
    ]
    expected = [
        {
            "expr": f"{filled(query.expr, fleet)} - {filled(query.expr, 'one')}",
            "eval_time": "10m",
            "exp_samples": [{"labels": "{}", "value": 0}],
        }
        for query in panel.queries
    ]
    test = {"interval": "15s", "input_series": shown, "promql_expr_test": expected}
    file = tmp_path / "panel.yml"
    file.write_text(json.dumps({"rule_files": [], "tests": [test]}))  # JSON is YAML
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_of_the_list_exists() -> None:
    listed = {(name, title) for name, titles in PANELS.items() for title in titles}
    assert listed == {(name, panel.title) for name, panel in panels()}


def _matchers(own: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in own.items())
