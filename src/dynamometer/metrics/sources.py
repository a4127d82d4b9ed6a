"""Where the families of a page come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.metrics import from_metric
from dynamometer.exposition.unchanged import Unchanged
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

        May raise anything, and may take its time: it has a thread and a deadline.
        """

    @property
    def errors(self) -> Mapping[str, int]:
        """What was left out so far, and never raised: how often, by reason; only grows."""


class RegistrySource:
    """prometheus_client's instruments in this process."""

    def __init__(self, name: str, instruments: CollectorRegistry) -> None:
        self.name = self.owner = name
        self._registry = instruments
        self._unchanged = Unchanged()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        return self._unchanged.keep([from_metric(metric) for metric in self._registry.collect()])

    @property
    def errors(self) -> Mapping[str, int]:
        """None: an instrument that fails raises."""
        return _NO_ERRORS


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
