"""The dashboards: Grafana's JSON, by Grafana's own library, and docs/dashboards.md.

The JSON is for Grafana 11.6 and later, the version that the library's release is generated from.
`make docs` and `make dashboards` write both; tests/observability/test_dashboards.py checks them.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model

from dynamometer.observability.dashboards import DASHBOARDS, DIRECTORY, path
from dynamometer.panels import Dashboard, Mode, Page, Panel, Row, Variable

PAGE = Path(__file__).with_name("dashboards.md")
TAG = "dynamometer"
SOURCE = model.DataSourceRef("prometheus", "${datasource}")
ALL = ".*"
WIDTH, HEIGHT = 8, 8
# Features that SGLang does not have on a CPU.
NOT_ON_A_CPU = (
    Mode.HIERARCHICAL_CACHE,
    Mode.CACHE_STORAGE,
    Mode.SPECULATIVE,
    Mode.LORA,
    Mode.GPU,
)


def write() -> None:
    """Write the JSON of each dashboard, and docs/dashboards.md."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        path(dashboard).write_text(render(dashboard), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


def render(dashboard: Dashboard) -> str:
    """Return the file of a dashboard: the same text for the same data."""
    built = json.dumps(_dashboard(dashboard).build(), cls=JSONEncoder, indent=1, sort_keys=True)
    return built + "\n"


def _dashboard(dashboard: Dashboard) -> build.Dashboard:
    others = build.DashboardLink("Dynamometer").type(model.DashboardLinkType.DASHBOARDS)
    built = (
        build.Dashboard(f"Dynamometer {dashboard.title}")
        .uid(dashboard.uid)
        .description(dashboard.description)
        .tags([TAG])
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-15m", "now")
        .link(others.tags([TAG]).as_dropdown(True).keep_time(True))
        .with_variable(
            build.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for variable in dashboard.variables:
        built.with_variable(_variable(variable))
    for row in dashboard.always:
        built.with_row(build.Row(row.title).id(_id(row.title)))
        for panel in row.panels:
            built.with_panel(_panel(panel))
    for row in dashboard.sometimes:
        built.with_row(_collapsed(row))
    return built


def _collapsed(row: Row) -> build.Row:
    built = build.Row(row.title).id(_id(row.title)).collapsed(True)
    for panel in row.panels:
        built.with_panel(_panel(panel))
    return built


def _variable(variable: Variable) -> build.QueryVariable:
    return (
        build.QueryVariable(variable.name)
        .label(variable.label)
        .query(f"label_values({variable.series}, {variable.of})")
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(ALL)
        .current(model.VariableOption(True, ["All"], ["$__all"]))
    )


def _panel(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(options.LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI)
    built = (
        timeseries.Panel()
        .id(_id(panel.title))
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit.value)
        .min(0)
        .height(HEIGHT)
        .span(WIDTH)
        .fill_opacity(30 if panel.stacked else 10)
        .show_points(options.VisibilityMode.NEVER)
        .legend(legend.placement(options.LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(tooltip.sort(options.SortOrder.DESCENDING))
    )
    if panel.stacked:
        built.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if panel.maximum is not None:
        built.max(panel.maximum)
    if panel.needs is not None:
        built.no_value(f"Only with {panel.needs.value}")
    if steps := _steps(panel):
        built.thresholds(
            build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
        ).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        )
    for number, query in enumerate(panel.queries):
        built.with_target(
            prometheus.Dataquery()
            .ref_id(chr(ord("A") + number))
            .expr(query.expr)
            .legend_format(query.legend)
            .datasource(SOURCE)
            .range()
        )
    return built


def _steps(panel: Panel) -> list[model.Threshold]:
    if panel.bad_from is not None:
        return [model.Threshold(None, "green"), model.Threshold(panel.bad_from, "red")]
    if panel.bad_below is not None:
        return [model.Threshold(None, "red"), model.Threshold(panel.bad_below, "green")]
    return []


def _id(title: str) -> int:
    """Return a number that stays the same when panels are added or moved."""
    return zlib.crc32(title.encode()) % 1_000_000


# docs/dashboards.md


_HEADER = """\
<!-- Generated by `make docs` from the dashboards' data: do not edit. -->
# Dashboards

`dyno observe` shows these dashboards in Grafana 11.6 and later. To import them elsewhere, use the
files in `src/dynamometer/observability/files/dashboards/` (in an installed package:
`dynamometer/observability/files/dashboards/`). A panel's description, behind the `i` beside its
title, has the finding to look for.

- A panel has data if Prometheus scrapes one of the pages in the column `page` (with `+`: all of
  them). `/engine_metrics` has the engines' families of all workers: do not scrape that page and the
  workers' pages, or each sum counts twice.
- A panel with an entry in the column `needs` is empty without that feature. Such panels are in
  collapsed rows.
"""

_ON_A_CPU = """\
## Empty on a CPU

Without a GPU, SGLang does not have the features that these panels need. Every other panel has data
on a CPU if its page is scraped; panels that need /engine_metrics among the targets are empty under
`dyno observe`, which scrapes the workers instead, and the dashboard Disaggregation needs a prefill
and a decode worker ([disaggregation.md](disaggregation.md)). tests/observability/test_panels.py and
tests/disagg/test_panels_of_a_pair.py evaluate all queries in a real Prometheus, after requests and
faults of a real SGLang.
"""

_ON_THE_SIMULATED_ENGINE = """\
## Empty with the simulated engine

The simulated engine (`dyno sglang --engine mocker`) has only the families of load, tokens, and the
times to the first token and to the end. Panels of other families stay empty with it, such as
inter-token latency, HTTP responses, the KV pool, memory, and the scheduler.
"""


def page() -> str:
    """Return docs/dashboards.md."""
    return "\n".join(
        [
            _HEADER,
            *(_section(dashboard) for dashboard in DASHBOARDS),
            _empty_on_a_cpu(),
            _ON_THE_SIMULATED_ENGINE,
        ]
    )


def _empty_on_a_cpu() -> str:
    lines = []
    for mode in NOT_ON_A_CPU:
        titles = [
            f"{dashboard.title}: {panel.title}"
            for dashboard in DASHBOARDS
            for panel in dashboard.panels
            if mode in (panel.needs, dashboard.needs)
        ]
        lines.append(f"- with {mode.value}: {', '.join(titles)}")
    return "\n".join([_ON_A_CPU, *lines, ""])


def _section(dashboard: Dashboard) -> str:
    rows = [_line(row.title, panel) for row in dashboard.rows for panel in row.panels]
    table = ["| row | panel | question | page | needs |", "| --- | --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {dashboard.title}\n", f"{dashboard.description}\n", *table, ""])


def _line(row: str, panel: Panel) -> str:
    question = panel.description[: panel.description.index("?") + 1]
    joined = " + " if Page.DCGM in panel.pages else ", "
    pages = joined.join(page.value for page in Page if page in panel.pages)
    needs = panel.needs.value if panel.needs else ""
    return f"| {row} | {panel.title} | {question} | {pages} | {needs} |"
