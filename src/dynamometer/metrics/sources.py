"""Where the families of a page come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.metrics import FamilyMetric, from_metric
from dynamometer.multiprocess import MultiprocessDirectory

_NO_ERRORS: Final[Mapping[str, int]] = MappingProxyType({})


class MetricsSource(Protocol):
    """One source of families.

    `name` is what its errors are counted under. Sources of one `owner` (an engine's files, and
    its own page) may show the same series; that is expected.
    """

    name: str
    owner: str

    def families(self) -> Sequence[Family]:
        """The families as they are now: the same objects where nothing changed.

        May raise anything, and may take its time: it is asked in a thread, and has a deadline.
        """

    @property
    def errors(self) -> Mapping[str, int]:
        """What was left out so far, and never raised: how often, by reason; only grows."""


class RegistrySource:
    """prometheus_client's instruments in this process."""

    def __init__(self, name: str, instruments: CollectorRegistry) -> None:
        self.name = self.owner = name
        self._registry = instruments
        self._known: dict[tuple[str, str], tuple[Sequence[Sample], Family]] = {}
        self._families: Sequence[Family] = ()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        families = [self._family(metric) for metric in self._registry.collect()]
        if families != self._families:  # families are equal to themselves only
            self._families = families
        return self._families

    def _family(self, metric: Metric) -> Family:
        if isinstance(metric, FamilyMetric):
            return from_metric(metric)
        key = (metric.name, metric.type)
        samples, before = self._known.get(key, (None, None))
        if before and samples == metric.samples and _describes(before.metadata, metric):
            return before
        family = from_metric(metric, before.metadata if before else None)
        self._known[key] = (metric.samples, family)
        return family

    @property
    def errors(self) -> Mapping[str, int]:
        """None: an instrument that fails raises."""
        return _NO_ERRORS


def _describes(metadata: Metadata, metric: Metric) -> bool:
    return metadata.documentation == metric.documentation and metadata.unit == metric.unit


class EngineSource:
    """An engine's multiprocess files; only names with one of `prefixes` pass."""

    def __init__(
        self, name: str, directory: MultiprocessDirectory, *, prefixes: Sequence[str]
    ) -> None:
        self.name = self.owner = name
        self._directory = directory
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        return self._filter.apply(self._directory.families())

    @property
    def errors(self) -> Mapping[str, int]:
        """What the directory could not read."""
        return self._directory.errors
