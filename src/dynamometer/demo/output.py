"""The output of the demo: headings, and parts of pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from prometheus_client import Metric

from dynamometer import names
from dynamometer.engines.sglang_names import SGLANG_CATEGORIES
from dynamometer.names import labels

# The engine has the families of this category in every mode, with values in two of them only.
_DISAGGREGATION: Final = "disaggregation"


def say(text: str) -> None:
    """Print a heading."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if _coloured() else ("", "")
    print(f"{bold}==> {text}{plain}", flush=True)


def on_terminal() -> bool:
    """Return whether a user reads the output and can end the demo."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def show_engine(page: Sequence[Metric], *, disaggregated: bool) -> None:
    """Print the families of the engine by category.

    Args:
        page: all families of a worker's page.
        disaggregated: also print the families about the two phases of a request.
    """
    engine = [m for m in page if m.name.startswith(names.name_prefix.SGLANG)]
    types = sorted({s.labels.get(labels.ENGINE_TYPE, "") for m in engine for s in m.samples} - {""})
    series = sum(len(metric.samples) for metric in engine)
    print(
        f"  {len(engine)} sglang: families, {series} series, "
        f"{labels.ENGINE_TYPE} {' and '.join(types)}; such as"
    )
    for category, members in SGLANG_CATEGORIES.items():
        if disaggregated or category != _DISAGGREGATION:
            stems = {member.removesuffix("_total") for member in members}
            _show(category, [metric for metric in engine if metric.name in stems])


def show_own(title: str, page: Sequence[Metric], prefix: str) -> None:
    """Print the families whose names have a prefix."""
    _show(title, [metric for metric in page if metric.name.startswith(f"{prefix}_")])


def _show(title: str, metrics: Sequence[Metric]) -> None:
    print(f"  {title}")
    for metric in metrics:
        if metric.samples:
            name = metric.name + ("_total" if metric.type == "counter" else "")
            print(f"    {name:<52} {_value(metric)}")


def _value(metric: Metric) -> str:
    """Return the sum of a family's series; of a histogram, the mean and the number of values."""

    def total(suffix: str) -> float:
        return sum(s.value for s in metric.samples if s.name == metric.name + suffix)

    if metric.type == "histogram":
        count = total("_count")
        return f"mean {total('_sum') / count:.4g} of {count:.0f}" if count else "none yet"
    return f"{total('_total' if metric.type == 'counter' else ''):.6g}"
