"""Metrics by the level of the runtime that they belong to.

A level is the runtime itself, a namespace, a component or an endpoint. What is created at a level
are prometheus_client's own instruments; the labels of the level, and constant ones, are added when
they are collected, so that nobody who counts has to name them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.values import MutexValue, ValueClass

from dynamometer.errors import ArgumentError, SettingsError
from dynamometer.exposition.families import INNER_LABELS, Metadata
from dynamometer.metrics import callbacks
from dynamometer.metrics.instruments import labelled, registry
from dynamometer.metrics.page import DEADLINE_SECONDS, MetricsPage
from dynamometer.metrics.sources import MetricsSource
from dynamometer.names import (
    build_component_metric_name,
    label_value,
    labels,
    sanitize_prometheus_label,
)
from dynamometer.process.forks import renew_in_child

Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_OF_LEVELS = frozenset({labels.NAMESPACE, labels.COMPONENT, labels.ENDPOINT})
# Makes an instrument, given its whole name and where it is to be collected.
Make = Callable[[str, CollectorRegistry], Instrument]


@dataclass(frozen=True)
class _Shape:
    """What all instruments of a name have in common, whatever their level."""

    type: str
    labelnames: tuple[str, ...]
    constant: tuple[str, ...]
    buckets: tuple[float, ...] | None = None

    def __str__(self) -> str:
        of = ", ".join([*self.labelnames, *(f"{name}=…" for name in self.constant)])
        buckets = "" if self.buckets is None else f" with the buckets {list(self.buckets)}"
        return f"a {self.type}{f' of ({of})' if of else ' without labels'}{buckets}"


_Key = tuple[str, tuple[tuple[str, str], ...]]


class Hierarchy:
    """All levels of one process, and the page that shows them."""

    def __init__(self, *, deadline: float = DEADLINE_SECONDS) -> None:
        """Nothing is created yet.

        Raises:
            SettingsError: prometheus_client was told to keep values in files.

        Args:
            deadline: how long callbacks and engines together may take at a scrape, seconds.
        """
        if ValueClass is not MutexValue:
            raise SettingsError(
                f"{_MULTIPROCESS} was set when prometheus_client was imported: a process's own "
                "metrics would go into those files. Unset it in this process, and name the "
                "directory where it is read: MultiProcessCollector(registry, path)"
            )
        self.registry = registry()
        self.page = MetricsPage(self.registry, deadline=deadline)
        renew_in_child(self)
        self._shapes: dict[str, _Shape] = {}
        self._owners: dict[str, str] = {}
        self._registries: dict[tuple[tuple[str, str], ...], CollectorRegistry] = {}
        self._instruments: dict[_Key, Counter | Gauge | Histogram] = {}
        self._sources: set[str] = set()

    def renew(self) -> None:
        """Start with a lock that no thread holds."""
        self._lock = threading.Lock()  # guards `_shapes` and all that follows it

    def level(self, level_labels: Mapping[str, str]) -> Metrics:
        """The metrics of the level that has these labels."""
        return Metrics(self, level_labels)

    def instrument(
        self,
        metadata: Metadata,
        shape: _Shape,
        constant: Mapping[str, str],
        make: Make[Instrument],
    ) -> Instrument:
        """The instrument of a name and constant labels; made where there is none yet.

        Raises:
            ArgumentError: the name belongs to another shape, or its parts are not allowed.
        """
        values = tuple(sorted(constant.items()))
        with self._lock:
            known = self._instruments.get((metadata.name, values))
            if known is None or self._shapes[metadata.name] != shape:
                self._check(metadata, shape)
                try:
                    known = make(metadata.text_name, self._registry(values))
                except ValueError as error:
                    raise ArgumentError(f"{metadata.text_name}: {error}") from None
                self._shapes[metadata.name] = shape
                self._owners.update(dict.fromkeys(metadata.reserved_names, metadata.name))
                self._instruments[(metadata.name, values)] = known
            return cast("Instrument", known)  # of the shape that was asked for

    def add_source(self, source: MetricsSource, *, expected: frozenset[str] = frozenset()) -> None:
        """Show a source's families too; one that has another one's name gets a number."""
        with self._lock:
            asked = source.name
            names = itertools.chain([asked], (f"{asked} {number}" for number in itertools.count(2)))
            source.name = next(name for name in names if name not in self._sources)
            if source.owner == asked:
                source.owner = source.name  # a namesake is somebody else
            self._sources.add(source.name)
        self.page.add(source, expected=expected)

    def _check(self, metadata: Metadata, shape: _Shape) -> None:
        for name in metadata.reserved_names:
            owner = self._owners.get(name)
            if owner is not None and (owner != metadata.name or self._shapes[owner] != shape):
                raise ArgumentError(
                    f"{metadata.text_name} cannot be {shape}: {owner} is {self._shapes[owner]}; "
                    "choose another name, or the same shape"
                )
            other = self.registry.owner(name)
            if other is not None:
                raise ArgumentError(
                    f"{metadata.text_name} cannot be {shape}: {other}, which is in the runtime's "
                    f"registry, has the name {name}; choose another one"
                )

    def _registry(self, values: tuple[tuple[str, str], ...]) -> CollectorRegistry:
        if values not in self._registries:
            self._registries[values] = labelled(self.registry, dict(values))
        return self._registries[values]


class Metrics:
    """The metrics of one level: a runtime, a namespace, a component or an endpoint."""

    def __init__(self, hierarchy: Hierarchy, level_labels: Mapping[str, str]) -> None:
        """A level's; see `Hierarchy.level`."""
        self._hierarchy = hierarchy
        self._labels = dict(level_labels)

    def create_counter(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        const_labels: Mapping[str, str] | None = None,
    ) -> Counter:
        """A counter called `dynamo_component_NAME_total`; prefix and suffix are added once.

        Args:
            name: what it counts; characters that no name can have become `_`.
            documentation: its HELP.
            labelnames: labels whose values are given when it counts: `counter.labels(...)`.
            const_labels: labels with their values, on all of its series.

        Returns:
            prometheus_client's own; the same one again for the same name and constant labels.

        Raises:
            ArgumentError: the name is that of a metric with another shape, whose shape it says;
                or a label is the runtime's, given twice, or no label's name.
        """

        def make(whole: str, where: CollectorRegistry) -> Counter:
            return Counter(whole, _text(whole, documentation), labelnames, registry=where)

        return self._create("counter", name, documentation, labelnames, const_labels, make)

    def create_gauge(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        const_labels: Mapping[str, str] | None = None,
    ) -> Gauge:
        """A gauge called `dynamo_component_NAME`; see `create_counter`."""

        def make(whole: str, where: CollectorRegistry) -> Gauge:
            return Gauge(whole, _text(whole, documentation), labelnames, registry=where)

        return self._create("gauge", name, documentation, labelnames, const_labels, make)

    def create_histogram(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        buckets: Sequence[float] | None = None,
        const_labels: Mapping[str, str] | None = None,
    ) -> Histogram:
        """A histogram called `dynamo_component_NAME`; see `create_counter`.

        Args:
            name: what it observes, with its unit: `latency_seconds`.
            documentation: its HELP.
            labelnames: labels whose values are given when it observes.
            buckets: upper bounds, each above the one before; +Inf is added. By default
                prometheus_client's.
            const_labels: labels with their values, on all of its series.
        """
        finite = _bounds(name, Histogram.DEFAULT_BUCKETS if buckets is None else buckets)

        def make(whole: str, where: CollectorRegistry) -> Histogram:
            return Histogram(
                whole, _text(whole, documentation), labelnames, registry=where, buckets=finite
            )

        return self._create(
            "histogram", name, documentation, labelnames, const_labels, make, finite
        )

    def register_callback(self, function: Callable[[], object]) -> None:
        """Call `function` before each scrape, in the page's thread, to set instruments.

        One that raises, or hangs, is counted under its name, and costs the page nothing else but
        the time until its deadline (`DistributedRuntime(deadline=...)`); what it would have set
        stays as it was.

        Raises:
            ArgumentError: it cannot be called, or is a coroutine function.
        """
        callbacks.checked(function)
        self._hierarchy.add_source(callbacks.CallbackSource(_name(function), function))

    def register_prometheus_expfmt_callback(
        self, function: Callable[[], str | bytes | None]
    ) -> None:
        """Show the text of the format 0.0.4 that `function` returns at each scrape.

        Raises:
            ArgumentError: it cannot be called, or is a coroutine function.
        """
        callbacks.checked(function)
        self._hierarchy.add_source(callbacks.TextSource(_name(function), function))

    def register_source(
        self, source: MetricsSource, *, expected: frozenset[str] = frozenset()
    ) -> None:
        """Show the families of a source: what is already families need not become text.

        Args:
            source: what is shown.
            expected: see `MetricsPage.add`.
        """
        self._hierarchy.add_source(source, expected=expected)

    def render(self, openmetrics: bool = False) -> bytes:  # noqa: FBT001, FBT002, RUF100
        """The page of the whole process, as of now.

        Args:
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.
        """
        self._hierarchy.page.refresh()
        return self._hierarchy.page.render(openmetrics=openmetrics)

    def _create(
        self,
        type_name: str,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        const_labels: Mapping[str, str] | None,
        make: Make[Instrument],
        buckets: tuple[float, ...] | None = None,
    ) -> Instrument:
        whole = build_component_metric_name(name)
        if not isinstance(labelnames, list | tuple | set | frozenset):
            raise ArgumentError(f"{whole}: labelnames are a list of names, not {labelnames!r}")
        if not isinstance(const_labels, Mapping | None):
            raise ArgumentError(f"{whole}: const_labels are names with values: {const_labels!r}")
        constant = {key: label_value(str(value)) for key, value in (const_labels or {}).items()}
        _check_labels(whole, labelnames, constant)
        family = whole.removesuffix("_total") if type_name == "counter" else whole
        return self._hierarchy.instrument(
            Metadata(family, type_name, _text(whole, documentation)),
            _Shape(type_name, tuple(labelnames), tuple(sorted(constant)), buckets),
            self._labels | constant,
            make,
        )


def _text(whole: str, documentation: str) -> str:
    if not isinstance(documentation, str):
        raise ArgumentError(f"{whole}: its documentation is a text, not {documentation!r}")
    return label_value(documentation)


def _bounds(name: str, buckets: Sequence[float]) -> tuple[float, ...]:
    """The finite ones, which rise."""
    try:
        bounds = [float(bound) for bound in buckets]
    except (TypeError, ValueError, OverflowError):
        bounds = [float("nan")]
    finite = bounds[:-1] if bounds and bounds[-1] == float("inf") else bounds
    rising = all(one < other for one, other in itertools.pairwise([float("-inf"), *finite]))
    if not finite or not rising or finite[-1] == float("inf"):
        raise ArgumentError(f"buckets of {name!r} must be numbers that rise, not {buckets!r}")
    return tuple(finite)


def _check_labels(whole: str, labelnames: Sequence[str], constant: Mapping[str, str]) -> None:
    seen: set[str] = set()
    for name in (*labelnames, *constant):
        if not isinstance(name, str) or sanitize_prometheus_label(name) != name:
            raise ArgumentError(f"{whole}: {name!r} is no name of a label")
        if name in _OF_LEVELS:
            raise ArgumentError(f"{whole}: the label {name!r} is the runtime's, which adds it")
        if name in INNER_LABELS.values():
            raise ArgumentError(f"{whole}: the label {name!r} is a histogram's or a summary's own")
        if name in seen:
            raise ArgumentError(f"{whole}: the label {name!r} is given twice")
        seen.add(name)


def _name(function: Callable[..., object]) -> str:
    """What a callback's errors are counted under."""
    return f"callback {getattr(function, '__qualname__', type(function).__name__)}"
