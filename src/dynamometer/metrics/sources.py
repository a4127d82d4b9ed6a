"""Where the families of a page come from."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from prometheus_client import Metric
from prometheus_client.samples import Sample

from dynamometer.exposition.conversion import NO_LABELS, FamilyMetric, from_metric
from dynamometer.exposition.families import Family, Metadata
from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory

logger = logging.getLogger(__name__)

NO_ERRORS: Final[Mapping[str, int]] = MappingProxyType({})


class MetricsSource(Protocol):
    """One source of families on a page.

    Attributes:
        name: the label `source` of its errors.
        owner: sources of one owner (an engine's files, and its own page) may show the same
            series, which is not counted as an error.
    """

    name: str
    owner: str

    def families(self) -> Sequence[Family]:
        """Return the families as they are now: the same objects where nothing changed.

        Called in the page's thread, with a deadline. Any exception costs this source alone.
        """

    @property
    def errors(self) -> Mapping[str, int]:
        """How often something was skipped without an exception, by reason; only grows."""


class Collects(Protocol):
    """A registry or a collector of prometheus_client's, or what looks like one."""

    def collect(self) -> Iterable[Metric]:
        """The families as they are now."""


class CountsErrors(ABC):
    """A registry or collector of our own that counts what it leaves out."""

    @property
    @abstractmethod
    def errors(self) -> Mapping[str, int]:
        """How often something was left out, by reason; only grows."""


def errors_of(registry: object) -> Callable[[], Mapping[str, int]] | None:
    """What a registry or collector of ours has left out so far, by reason, whenever it is asked.

    None for all others: what a user's calls `errors` is something of his own.
    """
    if isinstance(registry, CountsErrors | MultiProcessCollector | MultiprocessDirectory):
        return lambda: registry.errors
    return None


class RegistrySource:
    """prometheus_client's instruments in this process."""

    def __init__(
        self, name: str, registry: Collects, *, labels: Mapping[str, str] = NO_LABELS
    ) -> None:
        """Nothing is collected yet.

        Args:
            name: what its errors are counted under.
            registry: where the instruments are.
            labels: constant ones, added to every series that has not its own.
        """
        self.name = self.owner = name
        self._registry = registry
        self._errors = errors_of(registry)
        self._labels = dict(labels)
        self._known: dict[tuple[str, str], tuple[Sequence[Sample], Family]] = {}
        self._families: Sequence[Family] = ()
        self._invalid: Counter[str] = Counter()
        self._told: set[str] = set()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        families = []
        for metric in self._registry.collect():
            try:
                families.append(self._family(metric))
            except (UnicodeError, ValueError, TypeError) as error:
                self._leave_out(metric, error)
        if families != self._families:  # families are equal to themselves only
            self._families = families
        return self._families

    def _family(self, metric: Metric) -> Family:
        if isinstance(metric, FamilyMetric) and not self._labels:
            return from_metric(metric)
        key = (metric.name, metric.type)
        samples, before = self._known.get(key, (None, None))
        if before and samples == metric.samples and _describes(before.metadata, metric):
            return before
        family = from_metric(metric, before.metadata if before else None, self._labels)
        _ = family.metadata.text_header, family.metadata.openmetrics_header  # can they be written?
        self._known[key] = (metric.samples, family)
        return family

    def _leave_out(self, metric: Metric, error: Exception) -> None:
        """A family that no page can hold, such as one with half a character in a label."""
        self._invalid["invalid"] += 1
        if metric.name not in self._told:
            self._told.add(metric.name)
            logger.warning("%s is not on the page: %r", metric.name, error)

    @property
    def errors(self) -> Mapping[str, int]:
        """What was left out: families that cannot be written, instruments that fail."""
        found = Counter(self._invalid)
        if self._errors is not None:
            found.update(self._errors())
        return found


def _describes(metadata: Metadata, metric: Metric) -> bool:
    return metadata.documentation == metric.documentation and metadata.unit == metric.unit
