"""An engine's registry on the runtime's page, as in NVIDIA Dynamo.

The functions have the names and parameters of NVIDIA Dynamo 1.6.1
(`dynamo.common.utils.prometheus`) and accept its endpoints as well as those of this package. Three
things differ. A family is never split. The page counts an error of the registry, and shows the
other families. A family that did not change is not rendered again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR

from dynamometer.errors import ArgumentError
from dynamometer.exposition.conversion import from_metric
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merging import Merger, Source
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.exposition.rendering import Renderer
from dynamometer.exposition.series import metric_name
from dynamometer.metrics.hierarchy import Metrics, label_fault
from dynamometer.metrics.sources import Collects, RegistrySource
from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory
from dynamometer.names import label_value, labels
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

_DEFAULT_ENDPOINT: Final = "generate"
_DEFAULT_SOURCE: Final = "engine"
_LARGEST_CACHE: Final = 16


class TextCallbacks(Protocol):
    """The part of an NVIDIA Dynamo endpoint's metrics that this module needs."""

    def register_prometheus_expfmt_callback(self, function: Callable[[], str], /) -> object:
        """Show the text that `function` returns on the page."""


class EngineEndpoint(Protocol):
    """An endpoint of this package or of NVIDIA Dynamo."""

    @property
    def metrics(self) -> TextCallbacks:
        """The object that registers callbacks."""

    def connection_id(self) -> int:
        """Return the number of the instance."""


class EngineSource:
    """The selected families of a registry, renamed and with labels; see `MetricsSource`.

    The families of a `MultiprocessDirectory` or a `MultiProcessCollector` are not parsed again.
    """

    def __init__(self, name: str, registry: Collects, transform: FamilyTransform) -> None:
        """Store the arguments without collecting the registry.

        Args:
            name: the label `source` of the source's errors.
            registry: a registry, a collector or a `MultiprocessDirectory`.
            transform: selects, renames and labels the families; not shared with another source.
        """
        self.name = self.owner = name
        self._reader = _reader(name, registry)
        self._transform = transform

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        return self._transform.apply(self._reader.families())

    @property
    def errors(self) -> Mapping[str, int]:
        """The errors of the registry, and its families that cannot be written, by reason."""
        return self._reader.errors


class FamilyTransform:
    """A selection of families with a prefix and labels; unchanged families are not rebuilt."""

    def __init__(
        self,
        *,
        prefixes: str | Sequence[str] | None = None,
        exclude_prefixes: str | Sequence[str] | None = None,
        constant: Mapping[str, str] | None = None,
        add_prefix: str | None = None,
    ) -> None:
        """Check and store the arguments; see `register_engine_metrics_callback`.

        Args:
            prefixes: only families whose name begins with one of these; None for all families.
            exclude_prefixes: families to omit, even if `prefixes` selects them.
            constant: labels for each series that does not have the label.
            add_prefix: the new beginning of each name, which replaces the matching prefix of
                `prefixes`; a name that has the beginning already stays as it is.

        Raises:
            ArgumentError: An argument is not allowed; the message describes allowed values.
        """
        selected, excluded = _parse_prefixes(prefixes), _parse_prefixes(exclude_prefixes)
        self._filter = FamilyFilter(Selection.of(prefixes=selected, exclude_prefixes=excluded))
        self._add_prefix = _parse_prefix(add_prefix)
        self._relabelling = Relabelling(
            _parse_labels(constant), add_prefix=self._add_prefix, replaced_prefixes=selected
        )
        self._checked: Sequence[Family] = ()

    def apply(self, families: Sequence[Family]) -> Sequence[Family]:
        """Return the selected families, renamed and with labels, in their order."""
        return self._relabelling.apply(self._filter.apply(families))

    def check_names(self, families: Sequence[Family]) -> None:
        """Check that `add_prefix` does not give two families the same name.

        Raises:
            ArgumentError: Two families would have the same name; the message names both.
        """
        selected = self._filter.apply(families)
        if not self._add_prefix or selected is self._checked:
            return
        owners: dict[str, tuple[str, str]] = {}
        for metadata in [family.metadata for family in selected]:
            for before in sorted(metadata.text_names):
                name = self._relabelling.rename(before)
                first, owner = owners.setdefault(name, (before, metadata.text_name))
                if first != before:
                    raise ArgumentError(
                        f"add_prefix={self._add_prefix!r} gives {owner} and {metadata.text_name} "
                        f"the same name {name}: exclude one family, or choose another prefix"
                    )
        self._checked = selected


def register_engine_metrics_callback(
    endpoint: EngineEndpoint,
    registry: Collects,
    metric_prefix_filters: str | Sequence[str] | None = None,
    exclude_prefixes: str | Sequence[str] | None = None,
    inject_custom_labels: Mapping[str, str] | None = None,
    namespace_name: str | None = None,
    component_name: str | None = None,
    endpoint_name: str | None = None,
    model_name: str | None = None,
    *,
    add_prefix: str | None = None,
    source: str | None = None,
) -> None:
    """Show an engine's registry on the page of `endpoint`'s process.

    With `namespace_name` and `component_name`, each series gets the labels of the runtime:
    namespace, component, endpoint, `worker_id`, and with `model_name` also `model` and
    `model_name`. If a label has several values, the series' own value comes first, then the
    runtime's, then that of `inject_custom_labels`.

    Args:
        endpoint: an endpoint of this package or of NVIDIA Dynamo.
        registry: a CollectorRegistry, any collector, or a `MultiprocessDirectory`.
            `dynamometer.MultiProcessCollector` and the directory are fast.
        metric_prefix_filters: only families whose name begins with one of these; None for all.
        exclude_prefixes: families to omit, even if `metric_prefix_filters` selects them.
        inject_custom_labels: more labels for each series.
        namespace_name: the label `dynamo_namespace`.
        component_name: the label `dynamo_component`.
        endpoint_name: the label `dynamo_endpoint`; `generate` by default.
        model_name: the labels `model` and `model_name`.
        add_prefix: the new beginning of each name, which replaces the matching prefix of
            `metric_prefix_filters`; a name that has the beginning already stays as it is.
        source: the label `source` of errors; by default the first filter without its separator, or
            `engine`.

    Raises:
        ArgumentError: `registry` has no method `collect`, a label is reserved or not valid, or
            another argument is not allowed; the message describes allowed values.
    """
    _check_registry(registry)
    added = dict(_parse_labels(inject_custom_labels))
    if bool(namespace_name) != bool(component_name):
        logger.warning(
            "no labels of the runtime are added: set both namespace_name and component_name"
        )
    if namespace_name and component_name:
        automatic = _automatic_labels(
            endpoint, namespace_name, component_name, endpoint_name, model_name
        )
        for name in sorted(added.keys() & automatic.keys()):
            logger.warning(
                "the runtime sets the label %s to %r: %r in inject_custom_labels is ignored",
                name,
                automatic[name],
                added[name],
            )
        added |= automatic
    prefixes = _parse_prefixes(metric_prefix_filters)
    name = source or (prefixes[0].rstrip(":_.") if prefixes else "") or _DEFAULT_SOURCE
    transform = FamilyTransform(
        prefixes=prefixes, exclude_prefixes=exclude_prefixes, constant=added, add_prefix=add_prefix
    )
    metrics = endpoint.metrics
    if isinstance(metrics, Metrics):
        expected = frozenset() if _reads_files(registry) else _process_families()
        metrics.register_source(EngineSource(name, registry, transform), expected=expected)
    else:
        reader, text = _reader(name, registry), _CachedText(transform)
        metrics.register_prometheus_expfmt_callback(lambda: text.render(reader.families()))


def get_prometheus_expfmt(
    registry: Collects,
    metric_prefix_filters: str | Sequence[str] | None = None,
    exclude_prefixes: str | Sequence[str] | None = None,
    inject_custom_labels: Mapping[str, str] | None = None,
    *,
    add_prefix: str | None = None,
) -> str:
    """Return a registry's families as text of the format 0.0.4, without splitting a family.

    The text of unchanged families is kept for the next call with the same arguments, even with
    another registry over the same files. See `register_engine_metrics_callback` for the arguments.

    Raises:
        ArgumentError: An argument is not allowed, or `add_prefix` gives two families the same name.
        Exception: An exception of the registry.
    """
    _check_registry(registry)
    text = _cached_text(
        _parse_prefixes(metric_prefix_filters),
        _parse_prefixes(exclude_prefixes),
        tuple(sorted(_parse_labels(inject_custom_labels).items())),
        _parse_prefix(add_prefix),
    )
    return text.render([from_metric(metric) for metric in registry.collect()], strict=True)


class _CachedText:
    """A transform, and the text of the families from it; safe to use from several threads."""

    def __init__(self, transform: FamilyTransform) -> None:
        self._transform = transform
        self._logged: set[tuple[str, str]] = set()
        renew_in_child(self)

    def renew(self) -> None:
        """Create a new lock: another thread may have held the old one at the fork."""
        self._lock = threading.Lock()  # guards the merger
        self._merger = Merger()
        self._renderer = Renderer()

    def render(self, families: Sequence[Family], *, strict: bool = False) -> str:
        """Return the text of the transformed families.

        Of several families with one name, the text contains only the first.

        Raises:
            ArgumentError: `strict` is set, and `add_prefix` gives two families the same name.
        """
        with self._lock:
            if strict:
                self._transform.check_names(families)
            shown = self._transform.apply(families)
            page = self._merger.merge([Source(_DEFAULT_SOURCE, shown)])
            for omission in self._merger.omissions:
                if (omission.family, omission.reason) not in self._logged:
                    self._logged.add((omission.family, omission.reason))
                    logger.warning(
                        "%s is omitted from the text (%s): another family has the name",
                        omission.family,
                        omission.reason,
                    )
            return self._renderer.render(page).decode()


@lru_cache(_LARGEST_CACHE)
def _cached_text(
    prefixes: tuple[str, ...],
    excluded: tuple[str, ...],
    constant: tuple[tuple[str, str], ...],
    add_prefix: str,
) -> _CachedText:
    transform = FamilyTransform(
        prefixes=prefixes,
        exclude_prefixes=excluded,
        constant=dict(constant),
        add_prefix=add_prefix,
    )
    return _CachedText(transform)


def _check_registry(registry: object) -> None:
    if not callable(getattr(registry, "collect", None)):
        raise ArgumentError(
            f"{registry!r} is not a registry: it has no method `collect` "
            "(for a directory of files, pass MultiprocessDirectory(path))"
        )


def _reader(name: str, registry: Collects) -> MultiprocessDirectory | RegistrySource:
    """Return the reader of a registry's families."""
    if isinstance(registry, MultiprocessDirectory):
        return registry
    return RegistrySource(name, registry)


def _reads_files(registry: Collects) -> bool:
    return isinstance(registry, MultiprocessDirectory | MultiProcessCollector)


def _process_families() -> frozenset[str]:
    """Return the names of prometheus_client's families that describe the current process."""
    collectors = (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR)
    return frozenset(metric.name for one in collectors for metric in one.collect())


def _parse_prefixes(prefixes: str | Iterable[str] | None) -> tuple[str, ...]:
    if prefixes is None:
        return ()
    strings = (prefixes,) if isinstance(prefixes, str) else prefixes
    if not isinstance(strings, Iterable) or not all(isinstance(one, str) for one in strings):
        raise ArgumentError(f"prefixes must be a string or a list of strings, not {prefixes!r}")
    return tuple(strings)


def _parse_prefix(prefix: str | None) -> str:
    if prefix is not None and (not isinstance(prefix, str) or metric_name(prefix) != prefix):
        raise ArgumentError(
            f"add_prefix={prefix!r} cannot begin a metric's name: use letters, digits, '_' and ':'"
        )
    return prefix or ""


def _automatic_labels(
    endpoint: EngineEndpoint,
    namespace: str,
    component: str,
    endpoint_name: str | None,
    model: str | None,
) -> Mapping[str, str]:
    automatic = {
        labels.NAMESPACE: namespace,
        labels.COMPONENT: component,
        labels.ENDPOINT: endpoint_name or _DEFAULT_ENDPOINT,
    }
    worker_id = _worker_id(endpoint)
    if worker_id:
        automatic[labels.WORKER_ID] = worker_id
    if model:
        automatic |= {labels.MODEL: model, labels.MODEL_NAME: model}
    return automatic


def _worker_id(endpoint: EngineEndpoint) -> str:
    """Return the instance number in the form of the endpoint's runtime; empty if unavailable."""
    try:
        own = getattr(endpoint, labels.WORKER_ID, None)
        if isinstance(own, str):
            return own
        return (
            f"{endpoint.connection_id():x}"  # as in NVIDIA Dynamo's Python: without leading zeros
        )
    except Exception as error:
        logger.warning("the label %s is omitted: %r", labels.WORKER_ID, error)
        return ""


def _parse_labels(added: Mapping[str, str] | None) -> Mapping[str, str]:
    if not isinstance(added, Mapping | None):
        raise ArgumentError(f"labels to add must be a mapping like {{'a': 'b'}}, not {added!r}")
    for name in added or {}:
        if fault := label_fault(name):
            raise ArgumentError(fault)
    return {name: label_value(str(value)) for name, value in (added or {}).items()}
