"""An engine's registry on the runtime's page, as in NVIDIA Dynamo.

The function names and their parameters are Dynamo's (`dynamo.common.utils.prometheus` of 1.6.1);
they work with its endpoints as well as with ours. What differs: families stay whole, errors are
raised to the page, which counts them and keeps the rest, and what did not change is not made anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol

from dynamometer.errors import ArgumentError
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merge import Source
from dynamometer.exposition.merged_page import MergedPage
from dynamometer.exposition.metrics import from_metric
from dynamometer.exposition.relabel import Relabelling
from dynamometer.metrics.sources import Collects, MetricsSource, RegistrySource
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.names import label_value, labels, sanitize_prometheus_label

logger = logging.getLogger(__name__)

_DEFAULT_ENDPOINT: Final = "generate"
_DEFAULT_SOURCE: Final = "engine"
# They tell the lines of one histogram or summary apart.
_RESERVED: Final = ("le", "quantile")
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
        labels: Mapping[str, str] | None = None,
        add_prefix: str | None = None,
    ) -> None:
        """A view; see `register_engine_metrics_callback` for the arguments.

        Raises:
            ArgumentError: a label is one that histograms or summaries need, or no label's name.
        """
        chosen, excluded = _texts(prefixes), _texts(exclude_prefixes)
        self._filter = FamilyFilter(Selection.of(prefixes=chosen, exclude_prefixes=excluded))
        self._relabelling = Relabelling(
            _checked(labels or {}), add_prefix=add_prefix or "", replaced_prefixes=chosen
        )

    def apply(self, families: Sequence[Family]) -> Sequence[Family]:
        """The chosen families as they are shown, in their order."""
        return self._relabelling.apply(self._filter.apply(families))


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
        ArgumentError: a label is one that histograms or summaries need, or no label's name; or
            the registry is none.
    """
    if not callable(getattr(registry, "collect", None)):
        raise ArgumentError(f"{registry!r} is no registry: it has nothing to collect")
    added = dict(inject_custom_labels or {})
    if bool(namespace_name) != bool(component_name):
        logger.warning("no label of the runtime is added: namespace_name and component_name do it")
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
    engine = EngineSource(
        source or (prefixes[0].rstrip(":_") if prefixes else "") or _DEFAULT_SOURCE,
        registry,
        View(
            prefixes=prefixes,
            exclude_prefixes=exclude_prefixes,
            labels=added,
            add_prefix=add_prefix,
        ),
    )
    register: Callable[[MetricsSource], object] | None = getattr(
        endpoint.metrics, "register_source", None
    )
    if register is not None:
        register(engine)
    else:
        page = MergedPage()

        def text() -> str:
            page.update([Source(engine.name, engine.families())])
            return page.render().decode()

        endpoint.metrics.register_prometheus_expfmt_callback(text)


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
        ArgumentError: a label is one that histograms or summaries need, or no label's name.
        Exception: what the registry raises; never an empty text instead.
    """
    families = [from_metric(metric) for metric in registry.collect()]
    labels = tuple(
        sorted((name, str(value)) for name, value in (inject_custom_labels or {}).items())
    )
    kept = _kept(_texts(metric_prefix_filters), _texts(exclude_prefixes), labels, add_prefix)
    return kept.text(families)


class _Kept:
    """A view and the page made of it; safe to use from several threads."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._page = MergedPage()
        self._lock = threading.Lock()

    def text(self, families: Sequence[Family]) -> str:
        with self._lock:
            # A prefix may have made two families of one name.
            self._page.update([Source(_DEFAULT_SOURCE, self._view.apply(families))])
            return self._page.render().decode()


@lru_cache(_MOST_KEPT)
def _kept(
    prefixes: tuple[str, ...],
    excluded: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    add_prefix: str | None,
) -> _Kept:
    labels_of = dict(labels)
    return _Kept(
        View(prefixes=prefixes, exclude_prefixes=excluded, labels=labels_of, add_prefix=add_prefix)
    )


def _reader(name: str, registry: Collects) -> MultiprocessDirectory | RegistrySource:
    """What reads a registry's families."""
    if isinstance(registry, MultiprocessDirectory):
        return registry
    return RegistrySource(name, registry)


def _texts(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(text, str) for text in texts):
        raise ArgumentError(f"prefixes are texts, not {given!r}")
    return texts


def _automatic_labels(
    endpoint: EngineEndpoint,
    namespace: str,
    component: str,
    endpoint_name: str | None,
    model: str | None,
) -> Mapping[str, str]:
    # Dynamo's Python writes no leading zeros, which our own form has.
    own = getattr(endpoint, labels.WORKER_ID, None)
    automatic = {
        labels.NAMESPACE: namespace,
        labels.COMPONENT: component,
        labels.ENDPOINT: endpoint_name or _DEFAULT_ENDPOINT,
        labels.WORKER_ID: own or f"{endpoint.connection_id():x}",
    }
    if model:
        automatic |= {labels.MODEL: model, labels.MODEL_NAME: model}
    return automatic


def _checked(added: Mapping[str, str]) -> Mapping[str, str]:
    for name in added:
        if name in _RESERVED:
            raise ArgumentError(f"the label {name!r} is a histogram's or a summary's own")
        if sanitize_prometheus_label(name) != name:
            raise ArgumentError(f"{name!r} is no name of a label: letters, digits and '_' are")
    return {name: label_value(str(value)) for name, value in added.items()}
