"""Random families of prometheus_client, of every type."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

NUMBERS = st.floats() | st.sampled_from([0.0, -0.0, 1e6, 1e-5, 1e16, math.inf, math.nan, 123456.5])
COUNTS = st.integers(0, 2**53).map(float)
LABEL_NAMES = st.sampled_from(["a", "le_", "model", "z9"])
LABEL_VALUES = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\\n{}=, #'), max_size=5)
LABELS = st.dictionaries(LABEL_NAMES, LABEL_VALUES, max_size=3)
DOCUMENTATION = st.text(st.sampled_from('ab \\"\né'), max_size=8).map(str.strip)
SECONDS = st.none() | st.integers(0, 2**31).map(float)
EXEMPLARS = st.none() | st.builds(
    Exemplar, st.dictionaries(LABEL_NAMES, LABEL_VALUES, max_size=2), NUMBERS, SECONDS
)


class Fixed(Collector):
    """A collector that returns the given families."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def registry_of(metrics: list[Metric]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed(metrics))
    return registry


@st.composite
def metric(draw: st.DrawFn, name: str, *, openmetrics: bool) -> Metric:
    """Return one family; for OpenMetrics, a valid one with timestamps and exemplars."""
    kinds = ["counter", "gauge", "histogram", "summary", "unknown"]
    if openmetrics:
        kinds += ["info", "stateset", "gaugehistogram"]
    found = Metric(name, draw(DOCUMENTATION), draw(st.sampled_from(kinds)))
    label_sets = draw(
        st.lists(LABELS, max_size=3, unique_by=lambda labels: str(sorted(labels.items())))
    )
    seconds = draw(SECONDS) if openmetrics else None
    for labels in label_sets:
        _add(draw, found, labels, seconds, openmetrics=openmetrics)
    return found


def _add(
    draw: st.DrawFn,
    found: Metric,
    labels: dict[str, str],
    seconds: float | None,
    *,
    openmetrics: bool,
) -> None:
    name, kind = found.name, found.type
    exemplar = draw(EXEMPLARS) if openmetrics else None
    if kind == "counter":
        found.add_sample(f"{name}_total", labels, draw(COUNTS), seconds, exemplar)
    elif kind in ("gauge", "unknown"):
        found.add_sample(name, labels, draw(NUMBERS), seconds)
    elif kind == "info":
        found.add_sample(f"{name}_info", labels, 1.0, seconds)
    elif kind == "stateset":
        for state in ("on", "off"):
            found.add_sample(
                name, {**labels, name: state}, draw(st.sampled_from([0.0, 1.0])), seconds
            )
    elif kind == "summary":
        found.add_sample(name, {**labels, "quantile": "0.5"}, draw(COUNTS), seconds)
        found.add_sample(f"{name}_count", labels, draw(COUNTS), seconds)
        found.add_sample(f"{name}_sum", labels, draw(COUNTS), seconds)
    else:
        total = 0.0
        for bound in ("0.5", "1.0", "+Inf"):
            total += draw(st.integers(0, 1000))
            found.add_sample(f"{name}_bucket", {**labels, "le": bound}, total, seconds, exemplar)
        prefix = "g" if kind == "gaugehistogram" else ""
        found.add_sample(f"{name}_{prefix}count", labels, total, seconds)
        found.add_sample(f"{name}_{prefix}sum", labels, draw(COUNTS), seconds)


@st.composite
def metrics(draw: st.DrawFn, *, openmetrics: bool = False) -> list[Metric]:
    """Return the families of a page."""
    count = draw(st.integers(0, 4))
    return [draw(metric(f"m{number}x", openmetrics=openmetrics)) for number in range(count)]
