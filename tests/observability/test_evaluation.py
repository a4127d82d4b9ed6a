"""The evaluation of dashboards finds the panels that would stay empty in Grafana."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from evaluation import (
    DashboardError,
    Result,
    Values,
    evaluate,
    fill,
    intervals,
    parse,
)
from recorded import Recorded

from page_server import serving
from prometheus import Prometheus, needs_prometheus, running_prometheus
from stack import eventually

PAGE = b"""\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="a.b"} 1
sglang:num_running_reqs{model_name="c d"} 2
# TYPE empty_ratio gauge
empty_ratio{model_name="a.b"} NaN
"""
MODEL = {
    "name": "model",
    "type": "query",
    "query": {"query": "label_values(sglang:num_running_reqs, model_name)", "refId": "x"},
    "includeAll": True,
    "multi": True,
    "current": {"value": ["$__all"]},
}
GOOD = 'sum by (model_name) (sglang:num_running_reqs{model_name=~"$model"})'


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """A Prometheus that has scraped PAGE."""
    with serving(lambda path, headers: ("text/plain; version=0.0.4", PAGE)) as address:
        configuration = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "page", "static_configs": [{"targets": [address]}]}],
        }
        start = time.time()
        with running_prometheus(configuration, tmp_path_factory.mktemp("prometheus")) as server:
            eventually(lambda: scraped_twice(server), within=30, what="two scrapes")
            yield Recorded(server, start, time.time())


def scraped_twice(server: Prometheus) -> bool:
    return bool(server.query("count_over_time(sglang:num_running_reqs[1m]) > 1"))


def dashboard(*panels: Mapping[str, Any], variables: Sequence[Mapping[str, Any]] = (MODEL,)) -> Any:
    return parse({"title": "D", "templating": {"list": [*variables]}, "panels": [*panels]})


def panel(expression: str, title: str = "P") -> Mapping[str, Any]:
    return {"title": title, "type": "timeseries", "targets": [{"refId": "A", "expr": expression}]}


def outcomes(recorded: Recorded, *panels: Mapping[str, Any], **others: Any) -> list[Result]:
    return evaluate(dashboard(*panels, **others), recorded, intervals(60, 1, 1))


@needs_prometheus
@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        (GOOD, "data"),
        ('sglang:num_running_reqs{model_name=~"[[model]]"}', "data"),
        ('sglang:num_running_reqs{model_name=~"${model}"}', "data"),
        ("rate(sglang:num_running_reqs[$__range])", "data"),
        ("max_over_time(sglang:num_running_reqs[$__rate_interval])", "data"),
        # Faults of dashboards.
        ("sglang:num_runing_reqs", "empty"),
        ('sglang:num_running_reqs{model=~"$model"}', "empty"),
        ("sum by (le) (rate(sglang:num_running_reqs_bucket[$__interval]))", "empty"),
        ("empty_ratio", "empty"),
        ("0 * sglang:num_running_reqs / 0", "empty"),
        ('sglang:num_running_reqs{model_name="$model"}', "empty"),
        ('sglang:num_running_reqs{model_name=~"$modell"}', "error"),
        ("sum(sglang:num_running_reqs", "error"),
        ('sglang:num_running_reqs{model_name=~"${model:regex}"}', "error"),
    ],
)
def test_a_query_without_data_is_found(recorded: Recorded, expression: str, outcome: str) -> None:
    (found,) = outcomes(recorded, panel(expression, "Requests"))
    assert found.outcome.partition(":")[0] == outcome
    assert "Requests" in str(found)


@needs_prometheus
def test_a_variable_without_options_is_found(recorded: Recorded) -> None:
    no_options = {**MODEL, "query": "label_values(sglang:num_running_reqs, model)"}
    variable, query = outcomes(recorded, panel(GOOD, "Requests"), variables=[no_options])
    assert (variable.panel, variable.outcome) == ("variable model", "empty")
    assert (query.panel, query.outcome) == ("Requests", "empty")


@needs_prometheus
def test_panels_within_rows_are_evaluated(recorded: Recorded) -> None:
    row = {"title": "Row", "type": "row", "collapsed": True, "panels": [panel("misspelt", "In")]}
    assert [(found.panel, found.outcome) for found in outcomes(recorded, row)] == [("In", "empty")]


@needs_prometheus
def test_the_options_of_a_variable_depend_on_the_variables_before_it(recorded: Recorded) -> None:
    query = 'label_values(sglang:num_running_reqs{model_name="$model"}, instance)'
    one = {**MODEL, "multi": False, "includeAll": False, "current": {}}
    instance = {**MODEL, "name": "instance", "query": query}
    expression = 'sglang:num_running_reqs{instance=~"$instance"}'
    (found,) = outcomes(recorded, panel(expression), variables=[one, instance])
    assert found.outcome == "data"


@needs_prometheus
def test_a_part_of_an_option_can_be_its_value(recorded: Recorded) -> None:
    first = {**MODEL, "regex": "/(.*)[. ]./"}
    (found,) = outcomes(
        recorded, panel('label_replace(vector(1), "x", "$model", "", "")'), variables=[first]
    )
    assert '"(a|c)"' in found.query


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("$model", r"(a\\.b|c d)"),
        ("${model}", r"(a\\.b|c d)"),
        ("[[model]]", r"(a\\.b|c d)"),
        ("${model:regex}", r"(a\.b|c d)"),
        ("${model:pipe}", "a.b|c d"),
        ("${model:csv}", "a.b,c d"),
        ("$all", ".*"),
        ("${all:regex}", ".*"),
        ("$chosen", r"x\\.y"),
        ("$single", "x.y"),
        ("$single$chosen", r"x.yx\\.y"),
        ("[${__rate_interval}]", "[4s]"),
        ("[$__rate_interval]", "[4s]"),
    ],
)
def test_variables_are_filled_like_in_grafana(text: str, filled: str) -> None:
    values = {
        "model": Values(("a.b", "c d"), many=True),
        "all": Values(("a.b", "c d"), many=True, all_value=".*"),
        "chosen": Values(("x.y",), many=True),
        "single": Values(("x.y",)),
        "__rate_interval": Values((intervals(60, 1, 1)["__rate_interval"],)),
    }
    assert fill(text, values) == filled


@pytest.mark.parametrize("text", ["$unknown", "${unknown}", "[[unknown]]", "${model:strange}"])
def test_an_unknown_variable_or_format_is_an_error(text: str) -> None:
    with pytest.raises(DashboardError, match=r"unknown|strange"):
        fill(text, {"model": Values(("a",))})
