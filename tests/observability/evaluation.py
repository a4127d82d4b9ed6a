"""Dashboards as Grafana evaluates them: the queries of all panels, with their variables filled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ALL = "$__all"
_REFERENCE = re.compile(r"\$(\w+)|\$\{(\w+)(?::(\w+))?\}|\[\[(\w+)(?::(\w+))?\]\]")
_LABEL_VALUES = re.compile(
    r"label_values\(\s*(?:(?P<selector>.+),\s*)?(?P<label>\w+)\s*\)", re.DOTALL
)


class DashboardError(Exception):
    """A dashboard, or one of its queries, that Grafana could not evaluate."""


class Source(Protocol):
    """The questions of a dashboard to Prometheus, about a range of time."""

    def range(self, query: str) -> Sequence[Sequence[str]]:
        """Return the values of each series; raise `DashboardError` for a query with an error."""

    def label_values(self, label: str, selector: str | None) -> Sequence[str]: ...


@dataclass(frozen=True)
class Query:
    panel: str
    ref: str
    text: str


@dataclass(frozen=True)
class Variable:
    """A variable of a dashboard.

    Attributes:
        query: the query of its options, or the options themselves, separated by commas.
        regex: the part of each option that is its value.
        many: whether All, or several values, can be chosen.
        all_value: the text for All; None for all options.
        chosen: the values that the dashboard opens with; empty for the first option.
    """

    name: str
    type: str
    query: str
    regex: str
    many: bool
    all_value: str | None
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    variables: tuple[Variable, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Result:
    """The outcome of a query: `data`, `empty` or `error`."""

    dashboard: str
    panel: str
    ref: str
    query: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.dashboard}, {self.panel} ({self.ref}): {self.outcome}: {self.query}"


def read(path: Path) -> Dashboard:
    """Return the queries of all panels of a dashboard's file, and its variables."""
    return parse(json.loads(path.read_text(encoding="utf-8")))


def parse(content: Mapping[str, Any]) -> Dashboard:
    variables = tuple(
        _variable(found)
        for found in content.get("templating", {}).get("list", ())
        if found["type"] != "datasource"
    )
    panels = [*_panels(content.get("panels", ()))]
    queries = tuple(
        Query(panel["title"], target.get("refId", ""), target["expr"])
        for panel in panels
        for target in panel.get("targets", ())
    )
    return Dashboard(content.get("uid", ""), content["title"], variables, queries)


def _panels(panels: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for panel in panels:
        if panel.get("repeat") or panel.get("libraryPanel"):
            raise DashboardError(f"{panel.get('title')}: repeated and library panels are not read")
        yield panel
        yield from _panels(panel.get("panels", ()))


def _variable(content: Mapping[str, Any]) -> Variable:
    query = content.get("query", "")
    chosen = content.get("current", {}).get("value", ())
    return Variable(
        name=content["name"],
        type=content["type"],
        query=query["query"] if isinstance(query, Mapping) else query,
        regex=content.get("regex", ""),
        many=bool(content.get("includeAll") or content.get("multi")),
        all_value=content.get("allValue") or None,
        chosen=(chosen,) if isinstance(chosen, str) else tuple(chosen),
    )


# Variables


@dataclass(frozen=True)
class Values:
    """The chosen values of a variable. A text for All is used as it is."""

    values: tuple[str, ...]
    many: bool = False
    all_value: str | None = None


def fill(text: str, values: Mapping[str, Values]) -> str:
    """Replace each reference to a variable, as Grafana's data source for Prometheus does.

    Raises:
        DashboardError: The variable or the format is not known.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[4]
        if name not in values:
            raise DashboardError(f"the dashboard has no variable {name!r}")
        return _format(values[name], match[3] or match[5] or "")

    return _REFERENCE.sub(value, text)


def _format(chosen: Values, form: str) -> str:
    if chosen.all_value is not None:
        return chosen.all_value
    values = chosen.values
    if form == "regex":
        return _alternatives(
            [re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\g<0>", value) for value in values]
        )
    if form == "pipe":
        return "|".join(values)
    if form in ("csv", "raw"):
        return ",".join(values)
    if form:
        raise DashboardError(f"the format {form!r} of a variable is not known")
    if not chosen.many:
        return "".join(values[:1]).replace("\\", r"\\").replace('"', r"\"")
    return _alternatives([_escape(value) for value in values])


def _escape(value: str) -> str:
    """Escape a value for a regular expression within a quoted string of PromQL."""
    return re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", value.replace("\\", r"\\\\"))


def _alternatives(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"({'|'.join(values)})"


def choose(
    dashboard: Dashboard, source: Source, selected: Mapping[str, Sequence[str]] | None = None
) -> tuple[dict[str, Values], list[Result]]:
    """Return the value of each variable, and the variables without an option as results.

    Args:
        dashboard: the dashboard.
        source: the Prometheus that is asked for the options.
        selected: values that a user selects, by variable; all others are as the dashboard opens.
    """
    values: dict[str, Values] = {}
    empty: list[Result] = []
    for variable in dashboard.variables:
        options = _options(variable, source, values)
        if not options:
            name = f"variable {variable.name}"
            empty.append(Result(dashboard.title, name, "", variable.query, "empty"))
        wanted = tuple((selected or {}).get(variable.name, ())) or variable.chosen or options[:1]
        everything = ALL in wanted
        values[variable.name] = Values(
            options if everything else wanted,
            variable.many,
            variable.all_value if everything else None,
        )
    return values, empty


def _options(variable: Variable, source: Source, values: Mapping[str, Values]) -> tuple[str, ...]:
    if variable.type in ("custom", "constant", "textbox", "interval"):
        return tuple(word.strip() for word in variable.query.split(","))
    match = _LABEL_VALUES.fullmatch(variable.query.strip())
    if variable.type != "query" or not match:
        raise DashboardError(f"the variable {variable.name!r} cannot be filled: {variable.query}")
    selector = match["selector"] and fill(match["selector"], values)
    found = source.label_values(match["label"], selector)
    if not variable.regex:
        return tuple(found)
    pattern = re.compile(variable.regex.strip("/"))
    matches = [match for value in found if (match := pattern.search(value))]
    return tuple(dict.fromkeys(match[1] if match.groups() else match[0] for match in matches))


# Queries


def evaluate(
    dashboard: Dashboard,
    source: Source,
    builtin: Mapping[str, str],
    selected: Mapping[str, Sequence[str]] | None = None,
) -> list[Result]:
    """Return the outcome of each query, and of each variable without an option.

    Args:
        dashboard: the dashboard.
        source: the Prometheus that is asked.
        builtin: Grafana's own variables, such as `__rate_interval`.
        selected: values that a user selects, by variable.
    """
    values, results = choose(dashboard, source, selected)
    values |= {name: Values((value,)) for name, value in builtin.items()}
    for query in dashboard.queries:
        text, outcome = query.text, "empty"
        try:
            text = fill(query.text, values)
            if any(not _is_nan(value) for series in source.range(text) for value in series):
                outcome = "data"
        except DashboardError as error:
            outcome = f"error: {error}"
        results.append(Result(dashboard.title, query.panel, query.ref, text, outcome))
    return results


def _is_nan(value: str) -> bool:
    return value == "NaN"


def intervals(seconds: float, step: float, scrape: float) -> dict[str, str]:
    """Return Grafana's variables of time, for a range, a step and a scrape interval in seconds."""
    rate = max(step + scrape, 4 * scrape)
    return {
        "__interval": f"{step:.0f}s",
        "__interval_ms": f"{step * 1000:.0f}",
        "__rate_interval": f"{rate:.0f}s",
        "__range": f"{seconds:.0f}s",
        "__range_s": f"{seconds:.0f}",
        "__range_ms": f"{seconds * 1000:.0f}",
    }
