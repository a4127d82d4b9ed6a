"""The output of the demo: headings, and parts of pages."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import Metric

from dynamometer import names
from dynamometer.engines.sglang_names import SGLANG_CATEGORIES
from dynamometer.names import labels
from dynamometer.runtime.record import DECODE, PREFILL

# The engine has the families of this category in every mode, with values in two of them only.
_DISAGGREGATION: Final = "disaggregation"
# The queues of the other side are on each page, and stay at 0.
_OTHER_SIDE: Final = {
    PREFILL: f"{names.name_prefix.SGLANG}num_decode_",
    DECODE: f"{names.name_prefix.SGLANG}num_prefill_",
}


def say(text: str) -> None:
    """Print a heading."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if _coloured() else ("", "")
    print(f"{bold}==> {text}{plain}", flush=True)


def shell_command(variables: Mapping[str, str], arguments: Sequence[str]) -> str:
    """Return a command line that runs in a shell with the same variables and arguments."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join((*assignments, shlex.join(arguments)))


def on_terminal() -> bool:
    """Return whether a user reads the output and can end the demo."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def show_engine(page: Sequence[Metric], mode: str) -> None:
    """Print the families of the engine by category.

    Args:
        page: all families of a worker's page.
        mode: the mode of the worker; the families about two phases belong to one of them.
    """
    engine = [m for m in page if m.name.startswith(names.name_prefix.SGLANG)]
    types = sorted({s.labels.get(labels.ENGINE_TYPE, "") for m in engine for s in m.samples} - {""})
    series = sum(len(metric.samples) for metric in engine)
    print(
        f"  {len(engine)} sglang: families, {series} series, "
        f"{labels.ENGINE_TYPE} {' and '.join(types)}; such as"
    )
    for category, members in SGLANG_CATEGORIES.items():
        if category != _DISAGGREGATION:
            shown = members
        elif mode in _OTHER_SIDE:
            shown = tuple(name for name in members if not name.startswith(_OTHER_SIDE[mode]))
        else:
            continue
        stems = {name.removesuffix("_total") for name in shown}
        _show(category, [metric for metric in engine if metric.name in stems])


def show_own(title: str, page: Sequence[Metric], prefix: str) -> None:
    """Print the families whose names have a prefix."""
    _show(title, [metric for metric in page if metric.name.startswith(f"{prefix}_")])


def show_series(page: Sequence[Metric], family: str, by: Sequence[str]) -> None:
    """Print the series of a family that are not 0, each with the labels in `by`."""
    for metric in page:
        for sample in metric.samples:
            if sample.name == family and sample.value:
                named = ",".join(f'{label}="{sample.labels[label]}"' for label in by)
                print(f"  {family}{{{named}}} {sample.value:.6g}")


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
