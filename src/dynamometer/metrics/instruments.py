"""Registries for the project's own instruments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from dynamometer.exposition.metrics import to_metric
from dynamometer.metrics.sources import RegistrySource


def registry() -> CollectorRegistry:
    """A registry for the project's own instruments, without `_created` series."""
    prometheus_client.disable_created_metrics()
    return CollectorRegistry(auto_describe=False)


def labelled(instruments: CollectorRegistry, labels: Mapping[str, str]) -> CollectorRegistry:
    """A registry whose series have constant labels, collected with `instruments`.

    Args:
        instruments: where it is registered.
        labels: added to every series when it is collected; instruments know nothing of them.
    """
    registry = CollectorRegistry(auto_describe=False)
    instruments.register(_Labelled(registry, labels))
    return registry


class _Labelled(Collector):
    """The families of a registry, with labels; the same ones as before where nothing changed."""

    def __init__(self, registry: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._source = RegistrySource("labelled", registry, labels=labels)

    def collect(self) -> Iterable[Metric]:
        return [to_metric(family) for family in self._source.families()]
