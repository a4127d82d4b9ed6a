"""Dashboards as data: panels with their queries, without the program that shows them.

Each panel is described once: title, unit, queries, and the finding to look for. From this data,
docs/dashboards.py writes Grafana's JSON and docs/generate.py the tables of docs/dashboards.md.
Queries are PromQL; `$model`, `$instance` and `$rank` are variables of the dashboard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Unit(Enum):
    """Units of panels, by Grafana's identifiers."""

    NUMBER = "short"
    SECONDS = "s"
    MILLISECONDS = "ms"
    RATIO = "percentunit"
    PERCENT = "percent"
    PER_SECOND = "cps"
    REQUESTS = "si: req"
    REQUESTS_PER_SECOND = "reqps"
    TOKENS = "si: tok"
    TOKENS_PER_SECOND = "si: tok/s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "binBps"
    MEBIBYTES = "mbytes"
    MEBIBYTES_PER_SECOND = "MiBs"
    GIBIBYTES = "gbytes"
    GIBIBYTES_PER_SECOND = "GiBs"
    WATTS = "watt"
    CELSIUS = "celsius"
    MEGAHERTZ = "megahertz"


class Page(Enum):
    """The pages whose series a panel can show, by their place."""

    WORKER = "worker"
    EXPORTER = "exporter"
    FRONTEND = "frontend"
    FLEET = "/engine_metrics"
    DCGM = "dcgm-exporter"


class Mode(Enum):
    """Features and faults without which a panel has no data."""

    HIERARCHICAL_CACHE = "a hierarchical cache"
    CACHE_STORAGE = "a storage backend of the hierarchical cache"
    SPECULATIVE = "speculative decoding"
    LORA = "LoRA adapters"
    DISAGGREGATION = "prefill and decode apart"
    GPU = "NVIDIA GPUs and dcgm-exporter"
    FLEET_PAGE = "/engine_metrics among the targets"


# The pages that have an engine's own families.
ENGINE_PAGES: Final = frozenset({Page.WORKER, Page.EXPORTER, Page.FLEET})
# Several engines share an instance on an exporter's page and on /engine_metrics.
OF_ENGINE: Final = "instance, worker_id"
ENGINE_LEGEND: Final = "{{instance}} {{worker_id}}"


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and the legend of its series (`{{label}}` is replaced)."""

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A graph of some queries over time.

    Attributes:
        title: the name of the panel; unique in its dashboard.
        unit: the unit of all queries.
        queries: the lines of the graph.
        description: the question that the panel answers, and the finding to look for.
        pages: the pages that can have the series of all queries; the panel has data if one of them
            is scraped.
        needs: the feature without which the panel is empty; None if it always has data.
        bad_from: the lowest value that is bad; None if no high value is bad.
        bad_below: values below this one are bad; None if no low value is bad.
        maximum: the upper end of the axis, if the unit has one.
        stacked: True if the values add up to a total.
    """

    title: str
    unit: Unit
    queries: Sequence[Query]
    description: str
    pages: frozenset[Page] = ENGINE_PAGES
    needs: Mode | None = None
    bad_from: float | None = None
    bad_below: float | None = None
    maximum: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under one title."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice of label values: several, or all of them.

    Attributes:
        name: the name in queries, without `$`.
        label: the name for users.
        series: a selector of series with the label.
        of: the label whose values can be chosen.
    """

    name: str
    label: str
    series: str
    of: str


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Rows of panels, and the variables of their queries.

    Attributes:
        uid: the identifier, and the name of the file without `.json`.
        needs: a feature that the whole dashboard needs; None if some panels have data without it.
    """

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    needs: Mode | None = None

    @property
    def panels(self) -> Sequence[Panel]:
        """All panels, in order."""
        return [panel for row in self.rows for panel in row.panels]

    @property
    def always(self) -> Sequence[Row]:
        """The rows of the panels that need no more than the dashboard."""
        kept = [Row(row.title, [p for p in row.panels if self._always(p)]) for row in self.rows]
        return [row for row in kept if row.panels]

    @property
    def sometimes(self) -> Sequence[Row]:
        """One row for each feature that some panels need."""
        modes = dict.fromkeys(p.needs for p in self.panels if p.needs and not self._always(p))
        return [
            Row(f"Only with {mode.value}", [p for p in self.panels if p.needs is mode])
            for mode in modes
        ]

    def _always(self, panel: Panel) -> bool:
        return panel.needs in (None, self.needs)


def rate(family: str, matchers: str) -> str:
    """Return the rate per second of a counter's series, over Grafana's interval."""
    return f"rate({family}{{{matchers}}}[$__rate_interval])"


def quantiles(family: str, matchers: str, *, by: str = "", excluded: str = "") -> Sequence[Query]:
    """Return the median, the 90th and the 99th percentile of a histogram.

    Args:
        family: the histogram.
        matchers: the selected series.
        by: a label whose values have their own quantiles.
        excluded: an operator that excludes series, such as `unless on (instance) x`.
    """
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rates = " ".join([rate(f"{family}_bucket", matchers), excluded]).rstrip()
    return [
        Query(
            f"histogram_quantile({quantile}, sum by ({labels}) ({rates}))",
            f"p{quantile * 100:.0f}{legend}",
        )
        for quantile in (0.5, 0.9, 0.99)
    ]


def mean(family: str, matchers: str, *, by: str) -> str:
    """Return the mean of a histogram's observations, by one label."""
    total, count = (rate(f"{family}_{part}", matchers) for part in ("sum", "count"))
    return f"sum by ({by}) ({total}) / sum by ({by}) ({count})"
