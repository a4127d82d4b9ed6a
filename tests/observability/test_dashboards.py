"""The dashboards: every query names families and labels that exist, and the files are current.

These rules need no Prometheus server; other tests evaluate the queries on real pages.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from dynamometer.names import build, labels
from dynamometer.observability.dashboards import DASHBOARDS, DIRECTORY, path
from dynamometer.panels import Dashboard, Panel

sys.path.insert(0, str(ROOT / "docs"))

import dashboards as writer
import generate
import sglang_page

# Families in dcgm-exporter's default list (NVIDIA/dcgm-exporter 00d6d34, etc/default-counters.csv).
DCGM = """
    DCGM_FI_DEV_FB_FREE DCGM_FI_DEV_FB_USED DCGM_FI_DEV_GPU_TEMP DCGM_FI_DEV_GPU_UTIL
    DCGM_FI_DEV_MEM_COPY_UTIL DCGM_FI_DEV_PCIE_REPLAY_COUNTER DCGM_FI_DEV_POWER_USAGE
    DCGM_FI_DEV_ROW_REMAP_FAILURE DCGM_FI_DEV_SM_CLOCK DCGM_FI_DEV_XID_ERRORS
"""
OF_DCGM = {"gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname"}
# Families of a machine with accelerators, which the pages of a CPU do not have.
OF_ACCELERATORS = {build.ACCELERATOR_INFO: {labels.KIND, labels.INDEX, labels.UUID}}
# Series that Prometheus adds for each target.
PROMETHEUS_OWN = {"up", "scrape_duration_seconds", "scrape_samples_scraped"}
# Labels of every target; labels that a worker adds to the engine's series.
OF_TARGETS = {"instance", "job", "role"}
OF_WORKERS = {"worker_id", "model", "node_rank"}
# Labels that a rank has in some modes only.
SOMETIMES = {"dp_rank", "priority", "pid"}
# A selector of series; a matcher in it; labels of an operator; a label in a legend.
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\b(?:by|on|ignoring|group_left|group_right) \(([^)]*)\)")
LEGEND = re.compile(r"\{\{(\w+)\}\}")

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.title)
every_panel = pytest.mark.parametrize(
    "panel",
    [
        pytest.param(panel, id=f"{dashboard.title}: {panel.title}")
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
    ],
)


def facts() -> dict[str, tuple[set[str], bool]]:
    """Return the labels of each family, and whether a plain stack on a CPU has it."""
    known = {}
    for name, own in sglang_page.labels().items():
        ranked = SOMETIMES if "tp_rank" in own else set()
        known[name] = ({*own, *ranked, *OF_WORKERS}, False)
    for name in PROMETHEUS_OWN:
        known[name] = (set(), True)
    known |= dict.fromkeys(DCGM.split(), (OF_DCGM, False))
    known |= {name: (own, False) for name, own in OF_ACCELERATORS.items()}
    for name, family in generate.read():  # the families of a plain stack
        ranked = SOMETIMES if "tp_rank" in family.labels else set()
        known[name] = (set(family.labels) | ranked | OF_WORKERS, True)
    return known


FAMILIES = facts()


def selected(expr: str) -> Iterator[tuple[str, str]]:
    """Return each family in an expression, without a histogram's suffix, and its matchers."""
    for name, matchers in SELECTOR.findall(expr):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        yield (base if base in FAMILIES else name), matchers


def grafana_replaced(expr: str) -> str:
    return expr.replace("$__rate_interval", "20s").replace("$__range", "15m")


@every_dashboard
def test_a_title_names_dynamometer_in_every_folder(dashboard: Dashboard) -> None:
    written = json.loads(path(dashboard).read_text(encoding="utf-8"))
    assert written["title"] == f"Dynamometer {dashboard.title}"


@every_panel
def test_every_family_exists(panel: Panel) -> None:
    for query in panel.queries:
        named = {name for name, _ in selected(query.expr)}
        assert named
        assert named <= FAMILIES.keys()
        # Each family has a selector, so the line above has seen it.
        assert not re.findall(r"\b(?:sglang:|dynamo\w*_|process_)[\w:]+(?![\w:{])", query.expr)


@every_panel
def test_every_label_exists_on_its_family(panel: Panel) -> None:
    for query in panel.queries:
        known = OF_TARGETS | {"le"}
        for name, matchers in selected(query.expr):
            own = FAMILIES[name][0] | OF_TARGETS
            assert set(MATCHER.findall(matchers)) <= own, name
            known |= own
        used = {label for listed in GROUPING.findall(query.expr) for label in listed.split(", ")}
        assert used - {""} <= known
        assert set(LEGEND.findall(query.legend)) <= known


@every_panel
def test_engines_that_share_an_instance_are_distinguished(panel: Panel) -> None:
    """An exporter's page and /engine_metrics have several engines."""
    for query in panel.queries:
        of_engines = ("sglang:", "dynamometer_engine_")
        if any(name.startswith(of_engines) for name, _ in selected(query.expr)):
            for listed in GROUPING.findall(query.expr):
                assert "instance" not in listed.split(", ") or "worker_id" in listed, query.expr


@every_panel
def test_a_panel_needs_a_mode_if_a_plain_stack_does_not_have_its_families(panel: Panel) -> None:
    """A counter of events is missing before the first event: `or 0 * ...` shows 0 until then."""
    for query in panel.queries:
        present = query.expr.split(" or 0 * ")[-1]
        missing = [name for name, _ in selected(present) if not FAMILIES[name][1]]
        assert panel.needs is not None or not missing


@every_panel
def test_a_panel_states_what_to_look_for(panel: Panel) -> None:
    assert "?" in panel.description
    assert len(panel.description) > 60
    assert len(panel.title) <= 40
    assert panel.queries
    assert panel.pages


@every_panel
def test_legends_are_short_and_distinct(panel: Panel) -> None:
    legends = [query.legend for query in panel.queries]
    assert len(set(legends)) == len(legends)
    for legend in legends:
        assert 0 < len(LEGEND.sub("", legend)) + 8 * len(LEGEND.findall(legend)) <= 32


@every_panel
def test_rates_use_the_interval_of_grafana(panel: Panel) -> None:
    for query in panel.queries:
        ranges = re.findall(r"\[([^\]]*)\]", query.expr)
        assert set(ranges) <= {"$__rate_interval"}
        assert len(ranges) == len(re.findall(r"\b(?:rate|increase)\(", query.expr))


@every_dashboard
def test_titles_are_unique(dashboard: Dashboard) -> None:
    for named in (
        [panel.title for panel in dashboard.panels],
        [row.title for row in dashboard.rows],
    ):
        assert len(set(named)) == len(named)


def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": "x", "expr": grafana_replaced(query.expr)}
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    command = ["promtool", "check", "rules", "--lint=none", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, f"{len(rules)} rules found" in done.stdout) == (0, True), done


# The files.


def read(dashboard: Dashboard) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path(dashboard).read_text(encoding="utf-8"))
    return loaded


def test_there_is_a_file_for_each_dashboard() -> None:
    assert {file.name for file in DIRECTORY.iterdir()} == {path(one).name for one in DASHBOARDS}


@every_dashboard
def test_the_file_is_current(dashboard: Dashboard) -> None:
    assert path(dashboard).read_text(encoding="utf-8") == writer.render(dashboard), "make docs"


def test_the_page_is_current() -> None:
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "make docs"


@every_dashboard
def test_a_panel_that_needs_a_mode_is_in_a_collapsed_row_of_that_name(dashboard: Dashboard) -> None:
    needs = {panel.title: panel.needs for panel in dashboard.panels}
    shown = set()
    for panel in read(dashboard)["panels"]:
        if panel["type"] != "row":
            assert needs[panel["title"]] in (None, dashboard.needs)
            shown.add(panel["title"])
            continue
        assert panel["collapsed"] == bool(panel["panels"])
        for inner in panel["panels"]:
            mode = needs[inner["title"]]
            assert mode is not None
            assert panel["title"] == f"Only with {mode.value}"
            shown.add(inner["title"])
    assert shown == needs.keys()


@every_dashboard
def test_panels_have_their_own_place_and_number(dashboard: Dashboard) -> None:
    numbers, cells = [], []
    top = read(dashboard)["panels"]
    for panel in [*top, *(inner for row in top for inner in row.get("panels", ()))]:
        place = panel["gridPos"]
        numbers.append(panel["id"])
        cells += [
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
    assert len(set(numbers)) == len(numbers)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@every_dashboard
def test_all_values_of_a_variable_also_match_series_without_its_label(dashboard: Dashboard) -> None:
    source, *variables = read(dashboard)["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    assert [one["name"] for one in variables] == [one.name for one in dashboard.variables]
    for variable in variables:
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["allValue"] == ".*"
        assert variable["current"]["value"] == ["$__all"]
    used = set(
        re.findall(r"\$(\w+)", " ".join(q.expr for p in dashboard.panels for q in p.queries))
    )
    assert used - {"__rate_interval"} == {one.name for one in dashboard.variables}


@every_dashboard
def test_every_query_asks_the_chosen_data_source(dashboard: Dashboard) -> None:
    text = path(dashboard).read_text(encoding="utf-8")
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {dashboard.uid, "${datasource}"}
    assert read(dashboard)["tags"] == ["dynamometer"]
