"""The metrics of each level of the runtime.

A level is the runtime itself, a namespace, a component or an endpoint. The instruments of a level
are prometheus_client's own. The labels of the level and the constant labels are added when the
instruments are collected. So code that changes an instrument does not pass these labels.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.values import MutexValue, ValueClass

from dynamometer.errors import ArgumentError, SettingsError
from dynamometer.exposition.families import INNER_LABELS, Metadata
from dynamometer.metrics.callbacks import CallbackSource, TextSource, check_callback
from dynamometer.metrics.instruments import InstrumentRegistry, LabelledCollector
from dynamometer.metrics.page import SOURCE_DEADLINE_SECONDS, MetricsPage
from dynamometer.metrics.sources import MetricsSource, check_source
from dynamometer.names import (
    build_component_metric_name,
    label_value,
    labels,
    sanitize_prometheus_label,
)
from dynamometer.process.forks import renew_in_child

Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_LEVEL_LABELS = frozenset({labels.NAMESPACE, labels.COMPONENT, labels.ENDPOINT})


@dataclass(frozen=True)
class _Shape:
    """The properties that must be equal in all instruments of one name, on every level."""

    type_name: str
    labelnames: tuple[str, ...]
    constant: tuple[str, ...]
    buckets: tuple[float, ...] | None

    def create(
        self, kind: type[Instrument], metadata: Metadata, registry: CollectorRegistry
    ) -> Instrument:
        """Create an instrument in `registry`.

        Raises:
            ValueError: prometheus_client refuses the instrument.
        """
        options: Mapping[str, Any] = {} if self.buckets is None else {"buckets": self.buckets}
        return kind(
            metadata.text_name,
            metadata.documentation,
            self.labelnames,
            registry=registry,
            **options,
        )

    def __str__(self) -> str:
        names = ", ".join([*self.labelnames, *(f"{name}=…" for name in self.constant)])
        labels_part = f" with the labels ({names})" if names else " without labels"
        buckets = "" if self.buckets is None else f" and the buckets {list(self.buckets)}"
        return f"a {self.type_name}{labels_part}{buckets}"


_Key = tuple[str, tuple[tuple[str, str], ...]]


class Hierarchy:
    """All levels of one process, and their page."""

    def __init__(self, *, deadline: float = SOURCE_DEADLINE_SECONDS) -> None:
        """Create a registry and a page, without instruments.

        Args:
            deadline: see `MetricsPage`.

        Raises:
            ArgumentError: `deadline` is not a number above 0.
            SettingsError: PROMETHEUS_MULTIPROC_DIR was set when prometheus_client was imported.
        """
        if ValueClass is not MutexValue:
            raise SettingsError(
                f"{_MULTIPROCESS} was set when prometheus_client was imported, so this process "
                "would write its own metrics into that directory: unset the variable in this "
                "process, and read the directory with MultiProcessCollector(registry, path)"
            )
        self.registry = InstrumentRegistry()
        self.page = MetricsPage(self.registry, deadline=deadline)
        renew_in_child(self)
        self._shapes: dict[str, _Shape] = {}
        self._owners: dict[str, str] = {}
        self._registries: dict[tuple[tuple[str, str], ...], CollectorRegistry] = {}
        self._instruments: dict[_Key, Counter | Gauge | Histogram] = {}
        self._sources: set[str] = set()

    def renew(self) -> None:
        """Create a new lock: another thread may have held the old one at the fork."""
        self._lock = threading.Lock()  # guards all attributes from `_shapes` on

    def level(self, level_labels: Mapping[str, str]) -> Metrics:
        """Return the object that creates metrics with these labels."""
        return Metrics(self, level_labels)

    def instrument(
        self,
        kind: type[Instrument],
        metadata: Metadata,
        shape: _Shape,
        constant: Mapping[str, str],
    ) -> Instrument:
        """Return the instrument with this name and these constant labels, created if missing.

        Raises:
            ArgumentError: The name has another shape, or a part of the instrument is not allowed.
        """
        values = tuple(sorted(constant.items()))
        with self._lock:
            known = self._instruments.get((metadata.name, values))
            if known is None or self._shapes[metadata.name] != shape:
                self._check(metadata, shape)
                try:
                    known = shape.create(kind, metadata, self._registry(values))
                except ValueError as error:
                    raise ArgumentError(f"{metadata.text_name}: {error}") from None
                self._shapes[metadata.name] = shape
                self._owners.update(dict.fromkeys(metadata.reserved_names, metadata.name))
                self._instruments[(metadata.name, values)] = known
            return cast("Instrument", known)  # the equal shape contains the type

    def add_source(self, source: MetricsSource, *, expected: frozenset[str] = frozenset()) -> None:
        """Add a source; append a number to its name if another source has the same name."""
        with self._lock:
            name = source.name
            names = itertools.chain([name], (f"{name} {number}" for number in itertools.count(2)))
            source.name = next(one for one in names if one not in self._sources)
            if source.owner == name:
                source.owner = source.name  # a source of the same name has another owner
            self._sources.add(source.name)
        self.page.add(source, expected=expected)

    def _check(self, metadata: Metadata, shape: _Shape) -> None:
        for name in metadata.reserved_names:
            owner = self._owners.get(name)
            if owner is not None and (owner != metadata.name or self._shapes[owner] != shape):
                raise ArgumentError(
                    f"{metadata.text_name} cannot be {shape}: {owner} is {self._shapes[owner]}; "
                    "choose another name, or the same type, labels and buckets"
                )
            other = self.registry.owner(name)
            if other is not None:
                raise ArgumentError(
                    f"{metadata.text_name} cannot be {shape}: {other}, which is in the runtime's "
                    f"registry, has the name {name}; choose another name"
                )

    def _registry(self, values: tuple[tuple[str, str], ...]) -> CollectorRegistry:
        if values not in self._registries:
            self._registries[values] = InstrumentRegistry()
            self.registry.register(LabelledCollector(self._registries[values], dict(values)))
        return self._registries[values]


class Metrics:
    """The metrics of one level: a runtime, a namespace, a component or an endpoint."""

    def __init__(self, hierarchy: Hierarchy, level_labels: Mapping[str, str]) -> None:
        """See `Hierarchy.level`."""
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
        """Return the counter `dynamo_component_NAME_total`.

        Args:
            name: NAME, or the whole name. Characters that a metric's name cannot have become `_`.
            documentation: the HELP text.
            labelnames: the names of the labels that `counter.labels(...)` sets.
            const_labels: labels with their values, which all series of the counter get.

        Returns:
            A counter of prometheus_client: the same object for the same name and constant labels.

        Raises:
            ArgumentError: A metric of this name has another type, other labels or other buckets; or
                a label is not a valid name, occurs twice, or is a label of the runtime.
        """
        return self._create(Counter, name, documentation, labelnames, const_labels)

    def create_gauge(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        const_labels: Mapping[str, str] | None = None,
    ) -> Gauge:
        """Return the gauge `dynamo_component_NAME`; see `create_counter`."""
        return self._create(Gauge, name, documentation, labelnames, const_labels)

    def create_histogram(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        buckets: Sequence[float] | None = None,
        const_labels: Mapping[str, str] | None = None,
    ) -> Histogram:
        """Return the histogram `dynamo_component_NAME`; see `create_counter`.

        Args:
            name: NAME, with its unit: `latency_seconds`.
            documentation: the HELP text.
            labelnames: the names of the labels that `histogram.labels(...)` sets.
            buckets: the upper bounds in ascending order; +Inf is added. By default the bounds of
                prometheus_client.
            const_labels: labels with their values, which all series of the histogram get.
        """
        finite = _check_bounds(name, Histogram.DEFAULT_BUCKETS if buckets is None else buckets)
        return self._create(Histogram, name, documentation, labelnames, const_labels, finite)

    def register_callback(self, function: Callable[[], object]) -> None:
        """Call `function` before each scrape, in the page's thread, to set instruments.

        A callback that raises or hangs is counted under its name, and the page shows the last
        values of its instruments. A callback that hangs delays the page until the deadline
        (`DistributedRuntime(deadline=...)`).

        Raises:
            ArgumentError: `function` is not callable, or is a coroutine function.
        """
        check_callback(function)
        self._hierarchy.add_source(CallbackSource(_source_name(function), function))

    def register_prometheus_expfmt_callback(
        self, function: Callable[[], str | bytes | None]
    ) -> None:
        """Show the text of the format 0.0.4 that `function` returns at each scrape.

        Raises:
            ArgumentError: `function` is not callable, or is a coroutine function.
        """
        check_callback(function)
        self._hierarchy.add_source(TextSource(_source_name(function), function))

    def register_source(
        self, source: MetricsSource, *, expected: frozenset[str] = frozenset()
    ) -> None:
        """Show the families of a source.

        Args:
            source: the source. If another source has its name, a number is appended to the name.
            expected: see `MetricsPage.add`.

        Raises:
            ArgumentError: `source` does not have the attributes of a source.
        """
        check_source(source)
        self._hierarchy.add_source(source, expected=expected)

    def render(self, openmetrics: bool = False) -> bytes:  # noqa: FBT001, FBT002, RUF100
        """Return the current page of the whole process.

        Args:
            openmetrics: True for OpenMetrics 1.0.0, False for text 0.0.4.
        """
        self._hierarchy.page.refresh()
        return self._hierarchy.page.render(openmetrics=openmetrics)

    def _create(
        self,
        kind: type[Instrument],
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        const_labels: Mapping[str, str] | None,
        buckets: tuple[float, ...] | None = None,
    ) -> Instrument:
        whole = build_component_metric_name(name)
        if not isinstance(labelnames, list | tuple | set | frozenset):
            raise ArgumentError(f"{whole}: labelnames must be a list of names, not {labelnames!r}")
        if not isinstance(const_labels, Mapping | None):
            raise ArgumentError(
                f"{whole}: const_labels must map names to values, not {const_labels!r}"
            )
        constant = {key: label_value(str(value)) for key, value in (const_labels or {}).items()}
        _check_labels(whole, labelnames, constant)
        if not isinstance(documentation, str):
            raise ArgumentError(
                f"{whole}: the documentation must be a string, not {documentation!r}"
            )
        type_name = kind.__name__.lower()
        family = whole.removesuffix("_total") if kind is Counter else whole
        return self._hierarchy.instrument(
            kind,
            Metadata(family, type_name, label_value(documentation)),
            _Shape(type_name, tuple(labelnames), tuple(sorted(constant)), buckets),
            self._labels | constant,
        )


def _check_bounds(name: str, buckets: Sequence[float]) -> tuple[float, ...]:
    """Return the finite bounds.

    Raises:
        ArgumentError: The bounds are not numbers in ascending order.
    """
    try:
        bounds = [float(bound) for bound in buckets]
    except (TypeError, ValueError, OverflowError):
        bounds = [float("nan")]
    finite = bounds[:-1] if bounds and bounds[-1] == float("inf") else bounds
    ascending = all(one < other for one, other in itertools.pairwise([float("-inf"), *finite]))
    if not finite or not ascending or finite[-1] == float("inf"):
        raise ArgumentError(
            f"the buckets of {name!r} must be numbers in ascending order, not {buckets!r}"
        )
    return tuple(finite)


def _check_labels(whole: str, labelnames: Sequence[str], constant: Mapping[str, str]) -> None:
    seen: set[str] = set()
    for name in (*labelnames, *constant):
        if fault := label_fault(name):
            raise ArgumentError(f"{whole}: {fault}")
        if name in _LEVEL_LABELS:
            raise ArgumentError(f"{whole}: the runtime adds the label {name!r}: remove it")
        if name in seen:
            raise ArgumentError(f"{whole}: the label {name!r} is given twice")
        seen.add(name)


def label_fault(name: object) -> str:
    """Return why a user's label cannot have this name, or ""."""
    if not isinstance(name, str) or sanitize_prometheus_label(name) != name:
        return f"{name!r} is not a valid label name: use letters, digits and '_'"
    if name in INNER_LABELS.values():
        return f"the label {name!r} is reserved for histograms and summaries"
    return ""


def _source_name(function: Callable[..., object]) -> str:
    """Return the name of a callback's source."""
    return f"callback {getattr(function, '__qualname__', type(function).__name__)}"
