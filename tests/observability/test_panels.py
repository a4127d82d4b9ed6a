"""Every panel has data: a real Prometheus evaluates its queries on pages of the real stack.

The exceptions are the panels that need a feature or a page that is declared in their data; such a
panel must be empty, or its declaration is wrong.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from evaluation import Dashboard as Shown
from evaluation import Query, evaluate, intervals, read
from recorded import STEP_SECONDS, Recorded
from runs import SCRAPE_SECONDS, recorded_runs

from conftest import ROOT
from dynamometer.observability import dashboards
from dynamometer.panels import Dashboard, Mode, Page, Panel
from prometheus import needs_prometheus

sys.path.insert(0, str(ROOT / "docs"))

import dashboards as writer
import generate


@dataclass(frozen=True)
class Scraped:
    """The pages that one Prometheus scrapes, and the features that it sees."""

    pages: frozenset[Page]
    modes: frozenset[Mode] = frozenset()


RUNS = {
    "stack": Scraped(frozenset({Page.WORKER, Page.FRONTEND})),
    "exporter": Scraped(frozenset({Page.EXPORTER})),
    "fleet": Scraped(frozenset({Page.FLEET}), frozenset({Mode.FLEET_PAGE})),
}
# Features of the run in tests/disagg, which evaluates the panels that need them.
ELSEWHERE = {Mode.DISAGGREGATION}
# The choice of a rank has options only for data-parallel engines.
OFTEN_EMPTY = {"variable rank"}
PUBLISHED = Path(__file__).with_name("published_queries.tsv")
EVERY_DASHBOARD = pytest.mark.parametrize(
    "dashboard", dashboards.DASHBOARDS, ids=lambda dashboard: dashboard.uid
)


@pytest.fixture(scope="module")
def runs(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Recorded]]:
    with recorded_runs(tiny_model, tmp_path_factory.mktemp("panels")) as found:
        yield found


def has_data(dashboard: Dashboard, panel: Panel, scraped: Scraped) -> bool:
    """Return whether a panel must have data, by its declaration."""
    needed = {panel.needs, dashboard.needs} - {None}
    return needed <= scraped.modes and bool(panel.pages & scraped.pages)


def test_the_documented_features_that_a_cpu_does_not_have_are_off_in_every_run() -> None:
    seen = ELSEWHERE | {mode for scraped in RUNS.values() for mode in scraped.modes}
    assert {*writer.NOT_ON_A_CPU} == {*Mode} - seen


def times(run: Recorded) -> dict[str, str]:
    return intervals(run.end - run.start, STEP_SECONDS, SCRAPE_SECONDS)


@pytest.mark.engine
@needs_prometheus
@pytest.mark.parametrize("chosen", ["all models", "one model"])
@pytest.mark.parametrize("run", RUNS)
@EVERY_DASHBOARD
def test_a_panel_has_data_unless_it_needs_what_is_not_there(
    runs: Mapping[str, Recorded], tiny_model: Path, dashboard: Dashboard, run: str, chosen: str
) -> None:
    selected = {"model": [str(tiny_model)]} if chosen == "one model" else {}
    shown = read(dashboards.path(dashboard))
    results = evaluate(shown, runs[run], times(runs[run]), selected)
    with_data = {panel.title for panel in dashboard.panels if has_data(dashboard, panel, RUNS[run])}
    titles = {panel.title for panel in dashboard.panels}
    faults = [
        str(found)
        for found in results
        if (found.outcome != "data" and found.panel in with_data)
        or (found.panel not in titles | OFTEN_EMPTY and with_data)
    ]
    faults += [
        f"{dashboard.title}, {title}: has data, although its declaration excludes that"
        for title in titles - with_data
        if all(found.outcome == "data" for found in results if found.panel == title)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.engine
@needs_prometheus
def test_published_queries_have_data_unless_the_table_has_a_reason(
    runs: Mapping[str, Recorded], tiny_model: Path
) -> None:
    """Evaluate the queries of NVIDIA Dynamo's and SGLang's own dashboards."""
    lines = PUBLISHED.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if not line.startswith("#")]
    rows = [*csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)]
    reasons = [row["no data because"] for row in rows]
    queries = tuple(Query(row["panel"], row["dashboard"], row["query"]) for row in rows)
    builtin = times(runs["stack"]) | {
        "model": str(tiny_model),
        "model_name": str(tiny_model),
        "namespace": "a namespace of Kubernetes",
    }
    results = evaluate(Shown("", "published", (), queries), runs["stack"], builtin)
    wrong = [
        f"{found}: {reason or 'the table has no reason'}"
        for found, reason in zip(results, reasons, strict=True)
        if (found.outcome == "data") == bool(reason)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.engine
@needs_prometheus
def test_the_names_of_integrations_are_on_the_pages_unless_a_reason_is_documented(
    runs: Mapping[str, Recorded],
) -> None:
    for run, recorded in runs.items():
        stored = {counted(name) for name in recorded.label_values("__name__", None)}
        for integration in generate.published():
            if run == "stack" or run in integration.page:
                absent = set(integration.names) - stored
                assert absent == set(integration.absent), (integration.title, run)


def counted(name: str) -> str:
    """Return the name of a family from the name of a series, without a counter's `_total`."""
    return re.sub(r"_(total|bucket)$", "", name)
