"""Panels, rules and sums over a real pair: each panel has data, and each token counts once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from conftest import ROOT
from disagg.pair import MODEL, REQUESTS, Pair, outcome, send
from dynamometer.observability import dashboards
from dynamometer.observability.configuration import Targets
from dynamometer.panels import Dashboard, Page
from page_values import value
from prometheus import Prometheus, needs_prometheus, running_prometheus, written_configuration
from stack import eventually, ops_url

sys.path.insert(0, str(ROOT / "tests" / "observability"))

from evaluation import Result, evaluate, intervals, read
from recorded import STEP_SECONDS, Recorded
from shipped_rules import RULES

pytestmark = [pytest.mark.engine, needs_prometheus, pytest.mark.slow]

SCRAPE_SECONDS = 1
TOKENS = "dynamometer_engine_{}_tokens_total"
(DISAGGREGATION,) = [one for one in dashboards.DASHBOARDS if one.title == "Disaggregation"]
RUNS = {"stack": {Page.WORKER, Page.FRONTEND}, "fleet": {Page.FLEET}}
EVERY_RUN = pytest.mark.parametrize("run", RUNS)


@pytest.fixture(scope="module")
def runs(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Recorded]]:
    """Send all kinds of requests; yield what each Prometheus with the shipped rules recorded.

    Yields:
        `stack`: the pages of the frontend and of both workers; `fleet`: /engine_metrics.
    """
    ops = ops_url(pair.frontend)
    stack = written_configuration(Targets(sd_url=f"{ops}/sd"))
    address = ops.removeprefix("http://")
    fleet = {
        "job_name": "fleet",
        "metrics_path": "/engine_metrics",
        "static_configs": [{"targets": [address]}],
    }
    rules = {"rule_files": [str(path) for path in RULES]}
    settings = {"stack": stack | rules, "fleet": stack | rules | {"scrape_configs": [fleet]}}
    with ExitStack() as servers:
        started = {
            name: servers.enter_context(
                running_prometheus(content, tmp_path_factory.mktemp(f"prometheus-{name}"))
            )
            for name, content in settings.items()
        }
        started["stack"].wait_for("count(up == 1) == 3")
        start = time.time()
        # A rate needs a scrape before an increase, and one after it.
        for _ in range(2):
            for request in REQUESTS.values():
                assert send(pair.url, request).status == 200
            for server in started.values():
                wait_for_scrapes(server)
        yield {name: Recorded(server, start, time.time()) for name, server in started.items()}


def wait_for_scrapes(server: Prometheus) -> None:
    """Wait until all pages have been scraped again."""
    now = time.time()
    server.wait_for(f"min(timestamp(up)) > {now}")


def results(dashboard: Dashboard, run: Recorded) -> list[Result]:
    times = intervals(run.end - run.start, STEP_SECONDS, SCRAPE_SECONDS)
    return evaluate(read(dashboards.path(dashboard)), run, times)


@EVERY_RUN
def test_every_panel_of_the_dashboard_has_data(runs: Mapping[str, Recorded], run: str) -> None:
    without = {panel.title for panel in DISAGGREGATION.panels if not panel.pages & RUNS[run]}
    found = [one for one in results(DISAGGREGATION, runs[run]) if one.panel != "variable rank"]
    empty = {one.panel: str(one) for one in found if one.outcome != "data"}
    assert empty.keys() == without, "\n".join(empty.values())


@EVERY_RUN
@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_no_query_fails_with_two_sides(
    runs: Mapping[str, Recorded], run: str, dashboard: Dashboard
) -> None:
    found = results(dashboard, runs[run])
    assert not [str(one) for one in found if one.outcome.startswith("error")]


@EVERY_RUN
def test_the_rules_hold_with_two_sides(runs: Mapping[str, Recorded], run: str) -> None:
    server = runs[run].server
    groups = server.ask("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    for ready in ("engine_model_ready", "model_ready"):
        found = server.query(f"dynamometer:{ready}")
        assert [(one["metric"]["model"], one["value"][1]) for one in found] == [(MODEL, "1")]
    assert not server.query("ALERTS")


def test_each_token_counts_once(pair: Pair) -> None:
    """The prompt in the prefill worker, the answer in the decode worker."""

    def counted(name: str) -> list[float]:
        return [value(worker.page(), TOKENS.format(name)) for worker in pair.workers]

    before = counted("prompt") + counted("generation")
    facts = dict(outcome(send(pair.url, REQUESTS["streamed chat"])).facts)
    prompt, answer = facts["prompt_tokens"], facts["completion_tokens"]
    assert isinstance(prompt, int) and isinstance(answer, int)  # noqa: PT018
    added = [prompt, 0, 0, answer]
    eventually(
        lambda: (
            counted("prompt") + counted("generation")
            == [one + more for one, more in zip(before, added, strict=True)]
        ),
        within=10,
        what=f"the totals grow by {added}",
    )
