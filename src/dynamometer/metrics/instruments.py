"""Registries for a process's own instruments."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dynamometer.exposition.conversion import to_metric
from dynamometer.exposition.families import Metadata
from dynamometer.metrics.sources import CountsErrors, RegistrySource, errors_of
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)


class InstrumentRegistry(CollectorRegistry, CountsErrors):
    """A registry in which an instrument that fails costs only itself.

    In prometheus_client's own it costs everything: a gauge's function that raises is enough.
    """

    def __init__(self) -> None:
        """Nothing is registered yet."""
        super().__init__(auto_describe=False)
        self._own: list[Collector] = []
        self._names: dict[str, Collector] = {}
        self._counting: dict[Collector, Callable[[], Mapping[str, int]]] = {}
        renew_in_child(self)
        self._failed: Counter[str] = Counter()
        self._failing: set[Collector] = set()

    def renew(self) -> None:
        """Start with a lock that no thread holds."""
        self._changing = threading.Lock()

    def register(self, collector: Collector) -> None:
        """See prometheus_client."""
        super().register(collector)
        names, errors = _names(collector), errors_of(collector)
        with self._changing:
            self._own = [*self._own, collector]
            self._names |= dict.fromkeys(names, collector)
            if errors is not None:
                self._counting = {**self._counting, collector: errors}

    def unregister(self, collector: Collector) -> None:
        """See prometheus_client."""
        super().unregister(collector)
        with self._changing:
            self._own = [kept for kept in self._own if kept is not collector]
            self._names = {name: one for name, one in self._names.items() if one is not collector}
            self._counting = {one: e for one, e in self._counting.items() if one is not collector}

    def collect(self) -> Iterable[Metric]:
        """The families of all instruments but those that fail, which are counted and said once."""
        for collector in self._own:
            try:
                metrics = list(collector.collect())
            except Exception as error:
                self._failed["failed"] += 1
                if collector not in self._failing:
                    self._failing.add(collector)
                    logger.warning("%s is not on the page: %r", collector, error)
                    logger.debug("%s", collector, exc_info=error)
            else:
                self._failing.discard(collector)
                yield from metrics

    def owner(self, name: str) -> Collector | None:
        """The instrument that a family or a sample is called `name` of, if there is one."""
        return self._names.get(name)

    @property
    def errors(self) -> Mapping[str, int]:
        """How often an instrument was left out, by reason; only grows."""
        found = self._failed.copy()
        for errors in self._counting.values():
            found.update(errors())
        return found


def _names(collector: Collector) -> set[str]:
    """What its families and their samples may be called, where it tells them beforehand."""
    describe = getattr(collector, "describe", None)
    described: Iterable[Metric] = () if describe is None else describe()
    return {
        name for metric in described for name in Metadata(metric.name, metric.type).reserved_names
    }


def registry() -> InstrumentRegistry:
    """A registry for a process's own instruments."""
    return InstrumentRegistry()


def labelled(instruments: CollectorRegistry, labels: Mapping[str, str]) -> CollectorRegistry:
    """A registry whose series have constant labels, collected with `instruments`.

    Args:
        instruments: where it is registered.
        labels: added to every series when it is collected; instruments know nothing of them.
    """
    found = registry()
    instruments.register(_Labelled(found, labels))
    return found


class _Labelled(Collector, CountsErrors):
    """The families of a registry, with labels; the same ones as before where nothing changed."""

    def __init__(self, instruments: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._source = RegistrySource("labelled", instruments, labels=labels)

    @property
    def errors(self) -> Mapping[str, int]:
        return self._source.errors

    def collect(self) -> Iterable[Metric]:
        return [to_metric(family) for family in self._source.families()]
