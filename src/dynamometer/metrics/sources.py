"""The contract of a page's source, and the source of a registry."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol, cast

from prometheus_client import Metric
from prometheus_client.samples import Sample

from dynamometer.errors import ArgumentError
from dynamometer.exposition.conversion import FamilyMetric, from_metric
from dynamometer.exposition.families import Family, Metadata
from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory

logger = logging.getLogger(__name__)

NO_ERRORS: Final[Mapping[str, int]] = MappingProxyType({})


class MetricsSource(Protocol):
    """A source of families for a page.

    Attributes:
        name: the label `source` of the source's errors.
        owner: the owner of the series. Several sources of one owner (an engine's files, and its own
            page) may show the same series; that is not an error.
    """

    name: str
    owner: str

    def families(self) -> Sequence[Family]:
        """Return the current families: the same objects if nothing changed.

        The page's thread calls this method, with a deadline. After an exception, only the families
        of this source are missing on the page.
        """

    @property
    def errors(self) -> Mapping[str, int]:
        """The number of omissions without an exception, by reason; never decreases."""


class Collects(Protocol):
    """A registry or a collector of prometheus_client, or an object with the same method."""

    def collect(self) -> Iterable[Metric]:
        """Return the current families."""


class CountsErrors(ABC):
    """A registry or collector of this package that counts its omissions."""

    @property
    @abstractmethod
    def errors(self) -> Mapping[str, int]:
        """The number of omissions, by reason; never decreases."""


def errors_of(registry: object) -> Mapping[str, int]:
    """Return the omissions that a registry or collector of this package has counted, by reason.

    Empty for a user's collector, whose attribute `errors` may have another meaning.
    """
    if isinstance(registry, CountsErrors | MultiProcessCollector | MultiprocessDirectory):
        return registry.errors
    return NO_ERRORS


def check_source(source: object) -> None:
    """Check that an object can be a source of a page.

    Raises:
        ArgumentError: An attribute of `MetricsSource` is missing; the message names it.
    """
    for attribute in ("name", "owner", "families"):
        if not hasattr(source, attribute):
            raise ArgumentError(
                f"source={source!r} is not a MetricsSource: it has no attribute `{attribute}`"
            )


def check_seconds(argument: str, value: object) -> None:
    """Check that a duration is a number above 0 that a thread can wait for.

    Raises:
        ArgumentError: The value is not such a number; the message names the argument.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < cast("float", value) <= threading.TIMEOUT_MAX:
        raise ArgumentError(f"{argument}={value!r}: must be a number of seconds above 0")


class RegistrySource:
    """The families of a registry or collector of this process."""

    def __init__(self, name: str, registry: Collects) -> None:
        """Wrap a registry, without collecting it.

        Args:
            name: the label `source` of the source's errors.
            registry: the registry or collector.
        """
        self.name = self.owner = name
        self._registry = registry
        self._known: dict[tuple[str, str], tuple[Sequence[Sample], Family]] = {}
        self._families: Sequence[Family] = ()
        self._invalid: Counter[str] = Counter()
        self._logged: set[str] = set()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        families = []
        for metric in self._registry.collect():
            try:
                families.append(self._family(metric))
            except (UnicodeError, ValueError, TypeError) as error:
                self._omit(metric, error)
        if families != self._families:  # a family is equal only to itself
            self._families = families
        return self._families

    def _family(self, metric: Metric) -> Family:
        if isinstance(metric, FamilyMetric):
            return from_metric(metric)
        key = (metric.name, metric.type)
        samples, before = self._known.get(key, (None, None))
        if before and samples == metric.samples and _has_description_of(before.metadata, metric):
            return before
        family = from_metric(metric, before.metadata if before else None)
        _ = family.metadata.text_header, family.metadata.openmetrics_header  # may raise an error
        self._known[key] = (metric.samples, family)
        return family

    def _omit(self, metric: Metric, error: Exception) -> None:
        """Count, and log once, a family that cannot be written (an unpaired surrogate, say)."""
        self._invalid["invalid"] += 1
        if metric.name not in self._logged:
            self._logged.add(metric.name)
            logger.warning("%s is not on the page: %r", metric.name, error)

    @property
    def errors(self) -> Mapping[str, int]:
        """The number of omitted families and the errors of the registry, by reason."""
        found = Counter(self._invalid)
        found.update(errors_of(self._registry))
        return found


def _has_description_of(metadata: Metadata, metric: Metric) -> bool:
    return metadata.documentation == metric.documentation and metadata.unit == metric.unit
