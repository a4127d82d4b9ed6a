"""Registries for a process's own instruments."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dynamometer.exposition.conversion import to_metric
from dynamometer.exposition.families import Metadata
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.metrics.sources import CountsErrors, RegistrySource, errors_of
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)


class InstrumentRegistry(CollectorRegistry, CountsErrors):
    """A registry that omits and counts an instrument that fails, and collects the others.

    In prometheus_client's registry, one gauge function that raises makes `collect` raise.
    """

    def __init__(self) -> None:
        super().__init__(auto_describe=False)
        self._collectors: list[Collector] = []
        self._names: dict[str, Collector] = {}
        renew_in_child(self)
        self._failure_counts: Counter[str] = Counter()
        self._failing: set[Collector] = set()

    def renew(self) -> None:
        """Create a new lock: another thread may have held the old one at the fork."""
        self._change_lock = threading.Lock()  # held to replace `_collectors` and `_names`

    def register(self, collector: Collector) -> None:
        """Add a collector; see prometheus_client."""
        super().register(collector)
        names = _names(collector)
        with self._change_lock:
            self._collectors = [*self._collectors, collector]
            self._names |= dict.fromkeys(names, collector)

    def unregister(self, collector: Collector) -> None:
        """Remove a collector; see prometheus_client."""
        super().unregister(collector)
        with self._change_lock:
            self._collectors = [kept for kept in self._collectors if kept is not collector]
            self._names = {name: one for name, one in self._names.items() if one is not collector}

    def collect(self) -> Iterable[Metric]:
        """Return the families of all instruments, without those that raise an exception."""
        for collector in self._collectors:
            try:
                metrics = list(collector.collect())
            except Exception as error:
                self._failure_counts["failed"] += 1
                if collector not in self._failing:
                    self._failing.add(collector)
                    logger.warning("%s is not on the page: %r", collector, error)
                    logger.debug("%s", collector, exc_info=error)
            else:
                self._failing.discard(collector)
                yield from metrics

    def owner(self, name: str) -> Collector | None:
        """Return the instrument that has a family or a sample of this name, if any."""
        return self._names.get(name)

    @property
    def errors(self) -> Mapping[str, int]:
        """The number of omissions, by reason; never decreases."""
        found = self._failure_counts.copy()
        for collector in self._collectors:
            found.update(errors_of(collector))
        return found


def _names(collector: Collector) -> set[str]:
    """Return the names of families and samples that a collector describes, if it does."""
    describe = getattr(collector, "describe", None)
    described: Iterable[Metric] = () if describe is None else describe()
    return {
        name for metric in described for name in Metadata(metric.name, metric.type).reserved_names
    }


class LabelledCollector(Collector, CountsErrors):
    """The families of a registry with constant labels; the same objects if nothing changed."""

    def __init__(self, registry: CollectorRegistry, labels: Mapping[str, str]) -> None:
        """Wrap a registry.

        Args:
            registry: the registry of instruments without the labels.
            labels: the labels to add to each series at its collection.
        """
        self._source = RegistrySource("labelled", registry)
        self._relabelling = Relabelling(labels)

    def collect(self) -> Iterable[Metric]:
        """Return the families with the labels."""
        return [to_metric(one) for one in self._relabelling.apply(self._source.families())]

    @property
    def errors(self) -> Mapping[str, int]:
        """See `CountsErrors.errors`."""
        return self._source.errors
