"""An engine's registry on the runtime's page, as in NVIDIA Dynamo.

The function names and their parameters are Dynamo's (`dynamo.common.utils.prometheus` of 1.6.1);
they work with its endpoints as well as with ours. What differs: families stay whole, errors are
raised to the page, which counts them and keeps the rest, and what did not change is not made anew.
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
from dynamometer.exposition.families import INNER_LABELS, Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merged_page import MergedPage
from dynamometer.exposition.merging import Source
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.exposition.series import metric_name
from dynamometer.metrics.hierarchy import Metrics
from dynamometer.metrics.sources import Collects, RegistrySource
from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory
from dynamometer.names import label_value, labels, sanitize_prometheus_label
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

_DEFAULT_ENDPOINT: Final = "generate"
_DEFAULT_SOURCE: Final = "engine"
_MOST_KEPT: Final = 16


class TextCallbacks(Protocol):
    """The metrics of a Dynamo endpoint, as far as they are needed here."""

    def register_prometheus_expfmt_callback(self, function: Callable[[], str], /) -> object:
        """Show what `function` returns on the page."""


class EngineEndpoint(Protocol):
    """An endpoint: ours, or Dynamo's."""

    @property
    def metrics(self) -> TextCallbacks:
        """Where callbacks are registered."""

    def connection_id(self) -> int:
        """The number of the instance."""


class EngineSource:
    """A registry's families: chosen, renamed, with labels; see `MetricsSource`.

    Where the registry is, or holds, a reader of ours, its kept bytes are taken.
    """

    def __init__(
        self, name: str, registry: Collects, view: View, *, owner: str | None = None
    ) -> None:
        """Nothing is collected yet.

        Args:
            name: what its errors are counted under.
            registry: what is collected; a `MultiprocessDirectory` too.
            view: what is shown of it, by this source alone.
            owner: see `MetricsSource`; by default the name.
        """
        self.name = name
        self.owner = owner or name
        self._reader = _reader(name, registry)
        self._view = view

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        return self._view.apply(self._reader.families())

    @property
    def errors(self) -> Mapping[str, int]:
        """What a reader of ours could not read, and families that cannot be written."""
        return self._reader.errors


class View:
    """What is shown of a registry's families; what was made of one is kept while it is the same."""

    def __init__(
        self,
        *,
        prefixes: str | Sequence[str] | None = None,
        exclude_prefixes: str | Sequence[str] | None = None,
        constant: Mapping[str, str] | None = None,
        add_prefix: str | None = None,
    ) -> None:
        """A view; see `register_engine_metrics_callback` for the arguments.

        Args:
            prefixes: only families whose name begins with one of them; none: all.
            exclude_prefixes: families that are left out before anything is chosen.
            constant: labels for every series that has not its own.
            add_prefix: what names begin with afterwards, once, in place of the filter's prefix.

        Raises:
            ArgumentError: an argument is not allowed; says what is.
        """
        chosen, excluded = _texts(prefixes), _texts(exclude_prefixes)
        self._filter = FamilyFilter(Selection.of(prefixes=chosen, exclude_prefixes=excluded))
        self._add_prefix = _prefix(add_prefix)
        self._relabelling = Relabelling(
            _constant(constant), add_prefix=self._add_prefix, replaced_prefixes=chosen
        )
        self._told_apart: Sequence[Family] = ()

    def apply(self, families: Sequence[Family]) -> Sequence[Family]:
        """The chosen families as they are shown, in their order."""
        return self._relabelling.apply(self._filter.apply(families))

    def check_names(self, families: Sequence[Family]) -> None:
        """Raise where two families that have no name in common would have one.

        Raises:
            ArgumentError: the prefix does that; names both.
        """
        chosen = self._filter.apply(families)
        if not self._add_prefix or chosen is self._told_apart:
            return
        owners: dict[str, tuple[str, str]] = {}
        for metadata in [family.metadata for family in chosen]:
            for before in sorted(metadata.text_names):
                name = self._relabelling.name(before)
                first, owner = owners.setdefault(name, (before, metadata.text_name))
                if first != before:
                    raise ArgumentError(
                        f"add_prefix={self._add_prefix!r} makes one name, {name}, of {owner} "
                        f"and {metadata.text_name}: exclude one, or choose another prefix"
                    )
        self._told_apart = chosen


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

    With `namespace_name` and `component_name`, series get the runtime's labels: namespace,
    component, endpoint, `worker_id`, and `model` and `model_name` where there is a name. A series'
    own label wins over these, and these over `inject_custom_labels`.

    Args:
        endpoint: of this runtime, or of a real Dynamo.
        registry: a CollectorRegistry (with our `MultiProcessCollector` it is fast), any collector,
            or a `MultiprocessDirectory`.
        metric_prefix_filters: only families whose name begins with one of them; None: all.
        exclude_prefixes: families that are left out before anything is chosen.
        inject_custom_labels: more labels for every series.
        namespace_name: the label `dynamo_namespace`.
        component_name: the label `dynamo_component`.
        endpoint_name: the label `dynamo_endpoint`; `generate` by default.
        model_name: the labels `model` and `model_name`.
        add_prefix: what names begin with afterwards, once, in place of the filter's prefix.
        source: what errors are counted under; by default the first filter's word, or `engine`.

    Raises:
        ArgumentError: the registry is none, a label is one that histograms or summaries need or
            no label's name, or another argument is not allowed; says what is.
    """
    _check_registry(registry)
    added = dict(_constant(inject_custom_labels))
    if bool(namespace_name) != bool(component_name):
        logger.warning(
            "no label of the runtime is added: that needs namespace_name and component_name both"
        )
    if namespace_name and component_name:
        automatic = _automatic_labels(
            endpoint, namespace_name, component_name, endpoint_name, model_name
        )
        for name in sorted(added.keys() & automatic.keys()):
            logger.warning(
                "the label %s is the runtime's: %r stands, not %r",
                name,
                automatic[name],
                added[name],
            )
        added |= automatic
    prefixes = _texts(metric_prefix_filters)
    name = source or (prefixes[0].rstrip(":_") if prefixes else "") or _DEFAULT_SOURCE
    view = View(
        prefixes=prefixes, exclude_prefixes=exclude_prefixes, constant=added, add_prefix=add_prefix
    )
    metrics = endpoint.metrics
    if isinstance(metrics, Metrics):
        expected = frozenset() if _is_of_files(registry) else _own_of_process()
        metrics.register_source(EngineSource(name, registry, view), expected=expected)
    else:
        reader, kept = _reader(name, registry), _Kept(view)

        def text() -> str:
            return kept.text(reader.families())

        metrics.register_prometheus_expfmt_callback(text)


def get_prometheus_expfmt(
    registry: Collects,
    metric_prefix_filters: str | Sequence[str] | None = None,
    exclude_prefixes: str | Sequence[str] | None = None,
    inject_custom_labels: Mapping[str, str] | None = None,
    *,
    add_prefix: str | None = None,
) -> str:
    """A registry's families as text of the format 0.0.4; families stay whole.

    What was made of families is kept for the next call with the same arguments, be it with
    another registry over the same files. For the arguments see `register_engine_metrics_callback`.

    Raises:
        ArgumentError: as there; or `add_prefix` makes one name of two families', which it names.
        Exception: what the registry raises; never an empty text instead.
    """
    _check_registry(registry)
    kept = _kept(
        _texts(metric_prefix_filters),
        _texts(exclude_prefixes),
        tuple(sorted(_constant(inject_custom_labels).items())),
        _prefix(add_prefix),
    )
    return kept.text([from_metric(metric) for metric in registry.collect()], strict=True)


class _Kept:
    """A view and the page made of it; safe to use from several threads."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._page = MergedPage()
        self._told: set[tuple[str, str]] = set()
        renew_in_child(self)

    def renew(self) -> None:
        """Start with a lock that no thread holds."""
        self._lock = threading.Lock()

    def text(self, families: Sequence[Family], *, strict: bool = False) -> str:
        """The families as they are shown; of what cannot be on one page the first stands.

        Raises:
            ArgumentError: the prefix is at fault, and `strict`.
        """
        with self._lock:
            if strict:
                self._view.check_names(families)
            self._page.update([Source(_DEFAULT_SOURCE, self._view.apply(families))])
            for part in self._page.omissions:
                if (part.family, part.clash) not in self._told:
                    self._told.add((part.family, part.clash))
                    logger.warning(
                        "%s is left out of the text (%s): another family has the name",
                        part.family,
                        part.clash,
                    )
            return self._page.render().decode()


@lru_cache(_MOST_KEPT)
def _kept(
    prefixes: tuple[str, ...],
    excluded: tuple[str, ...],
    constant: tuple[tuple[str, str], ...],
    add_prefix: str,
) -> _Kept:
    added = dict(constant)
    return _Kept(
        View(prefixes=prefixes, exclude_prefixes=excluded, constant=added, add_prefix=add_prefix)
    )


def _check_registry(registry: object) -> None:
    if not callable(getattr(registry, "collect", None)):
        raise ArgumentError(
            f"{registry!r} is no registry: it has nothing to collect "
            "(of a directory of files: MultiprocessDirectory(path))"
        )


def _reader(name: str, registry: Collects) -> MultiprocessDirectory | RegistrySource:
    """What reads a registry's families."""
    if isinstance(registry, MultiprocessDirectory):
        return registry
    return RegistrySource(name, registry)


def _is_of_files(registry: Collects) -> bool:
    return isinstance(registry, MultiprocessDirectory | MultiProcessCollector)


def _own_of_process() -> frozenset[str]:
    """The families that prometheus_client shows of its process, in each registry that has them."""
    collectors = (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR)
    return frozenset(metric.name for one in collectors for metric in one.collect())


def _texts(given: str | Iterable[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    texts = (given,) if isinstance(given, str) else given
    if not isinstance(texts, Iterable) or not all(isinstance(text, str) for text in texts):
        raise ArgumentError(f"prefixes are a text or a list of texts, not {given!r}")
    return tuple(texts)


def _prefix(given: str | None) -> str:
    if given is not None and (not isinstance(given, str) or metric_name(given) != given):
        raise ArgumentError(
            f"add_prefix={given!r} cannot begin a metric's name: letters, digits, '_' and ':' can"
        )
    return given or ""


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
    """The instance's number; empty where the endpoint does not tell it, as the peer has it."""
    try:
        own = getattr(endpoint, labels.WORKER_ID, None)
        if isinstance(own, str):
            return own
        return f"{endpoint.connection_id():x}"  # as Dynamo's Python: no leading zeros
    except Exception as error:
        logger.warning("the label %s is left out: %r", labels.WORKER_ID, error)
        return ""


def _constant(given: Mapping[str, str] | None) -> Mapping[str, str]:
    if not isinstance(given, Mapping | None):
        raise ArgumentError(f"labels to add are names with values, as {{'a': 'b'}}, not {given!r}")
    for name in given or {}:
        if name in INNER_LABELS.values():
            raise ArgumentError(f"the label {name!r} is a histogram's or a summary's own")
        if sanitize_prometheus_label(name) != name:
            raise ArgumentError(f"{name!r} is no name of a label: letters, digits and '_' are")
    return {name: label_value(str(value)) for name, value in (given or {}).items()}
