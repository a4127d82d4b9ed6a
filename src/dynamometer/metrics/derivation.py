"""Families derived from an engine's own families, in the same refresh of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merging import Merger, Source
from dynamometer.metrics.sources import NO_ERRORS


class Derivation(Protocol):
    """Derives families from the families of one owner's sources.

    Attributes:
        name: the label `source` of its errors.
        owner: the owner of the sources.
        names: the families that it reads, by their names in the text format.
    """

    name: str
    owner: str
    names: frozenset[str]

    def families(self, families: Sequence[Family]) -> Sequence[Family]:
        """Return the derived families: the same objects where nothing changed.

        Args:
            families: the families of `names` that exist, merged. The same sequence as before
                where nothing in them changed.
        """


class DerivedSource:
    """A derivation as one more source of the page; see `MetricsSource`."""

    def __init__(
        self, derivation: Derivation, read_sources: Callable[[], Sequence[Source]]
    ) -> None:
        """Make the source of a derivation.

        Args:
            derivation: makes the families.
            read_sources: returns the sources of its owner, as they were read in this refresh.
        """
        self.name = derivation.name
        self.owner = derivation.owner
        self._derivation = derivation
        self._read_sources = read_sources
        self._wanted = Selection.of(names=derivation.names)
        self._filters: dict[str, FamilyFilter] = {}
        self._merger = Merger()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        sources = self._read_sources()
        filters = {s.name: self._filters.get(s.name) or FamilyFilter(self._wanted) for s in sources}
        self._filters = filters
        chosen = [Source(s.name, filters[s.name].apply(s.families)) for s in sources]
        if len(chosen) == 1:
            return self._derivation.families(chosen[0].families)
        return self._derivation.families(self._merger.merge(chosen))

    @property
    def errors(self) -> Mapping[str, int]:
        """Return no errors: a derivation that fails raises."""
        return NO_ERRORS
