"""Compare pages of NVIDIA Dynamo's worker with each other, and with NVIDIA Dynamo's functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynamo.common.utils.prometheus import get_prometheus_expfmt, get_prometheus_typed
from prometheus_client import CollectorRegistry, multiprocess

from dynamometer.exposition.parser import parse
from dynamometer.multiprocess import MultiProcessCollector
from dynamometer.names import labels

PREFIX = "sglang:"
# Labels whose values differ at every start; gauges of the mode `all` have `pid`.
CHANGING_LABELS = frozenset({labels.WORKER_ID, "pid"})
Series = tuple[str, frozenset[tuple[str, str]]]


def differences(page: bytes, other: bytes) -> list[str]:
    """Return the differences between two pages in families, types, help texts and series."""
    one, two = _families(page), _families(other)
    found = [f"family {name} is missing" for name in one.keys() - two.keys()]
    found += [f"family {name} is new" for name in two.keys() - one.keys()]
    for name in one.keys() & two.keys():
        (header, series), (other_header, other_series) = one[name], two[name]
        if header != other_header:
            found.append(f"{name} is {other_header}, not {header}")
        found += [f"missing: {_text(key)}" for key in series - other_series]
        found += [f"new: {_text(key)}" for key in other_series - series]
    return sorted(found)


def differences_of_values(files: Path, page: Callable[[], bytes]) -> list[str]:
    """Compare a page's engine families with the output of NVIDIA Dynamo's own functions.

    Args:
        files: the directory of the worker's files.
        page: returns the page. A series whose value changes during the comparison is skipped.
    """
    before = _values(page())
    injected = _injected(before)
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    multiprocess.MultiProcessCollector(theirs, path=str(files))
    MultiProcessCollector(ours, path=str(files))
    text = get_prometheus_expfmt(theirs, [PREFIX], None, injected)
    typed = [get_prometheus_typed(given, [PREFIX], None, injected) for given in (theirs, ours)]
    after = _values(page())
    unchanged = {key for key, value in before.items() if after.get(key) == value}
    found = _unequal(_values(text.encode()), after, unchanged)
    one, two = (_typed_values(families) for families in typed)
    return found + [f"typed: {fault}" for fault in _unequal(one, two, unchanged)]


def _families(page: bytes) -> dict[str, tuple[tuple[str, str], frozenset[Series]]]:
    found = {}
    for family in parse(page).families:
        metadata = family.metadata
        series = frozenset(
            (
                sample.series.name,
                frozenset(
                    pair for pair in sample.series.labels.items() if pair[0] not in CHANGING_LABELS
                ),
            )
            for sample in family.samples
        )
        found[metadata.name] = (metadata.type, metadata.documentation), series
    return found


def _values(page: bytes) -> dict[Series, float]:
    samples = (sample for family in parse(page).families for sample in family.samples)
    return {
        (sample.series.name, frozenset(sample.series.labels.items())): float(sample.value)
        for sample in samples
        if sample.series.name.startswith(PREFIX)
    }


def _typed_values(families: list[Any]) -> dict[Series, float]:
    return {
        (name, frozenset(pairs)): value
        for *_, samples in families
        for name, pairs, value, _ in samples
    }


def _injected(values: Mapping[Series, float]) -> dict[str, str]:
    """Return the labels that NVIDIA Dynamo adds to an engine's series, taken from one series."""
    (_, pairs), *_ = values
    given = dict(pairs)
    names = (labels.NAMESPACE, labels.COMPONENT, labels.ENDPOINT, labels.WORKER_ID, labels.MODEL)
    return {name: given[name] for name in names} | {labels.MODEL_NAME: given[labels.MODEL]}


def _unequal(
    one: Mapping[Series, float], two: Mapping[Series, float], unchanged: set[Series]
) -> list[str]:
    found = [f"missing: {_text(key)}" for key in one.keys() - two.keys()]
    found += [f"new: {_text(key)}" for key in two.keys() - one.keys()]
    for key in one.keys() & two.keys() & unchanged:  # sums may differ in their last bits
        if not math.isclose(one[key], two[key], rel_tol=1e-12) and one[key] == one[key]:
            found.append(f"{_text(key)} is {two[key]}, not {one[key]}")
    return sorted(found)


def _text(series: Series) -> str:
    name, pairs = series
    return f"{name}{{{','.join(f'{label}={value!r}' for label, value in sorted(pairs))}}}"
