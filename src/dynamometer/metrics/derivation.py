"""Families that each refresh of the page derives from the families of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merging import Merger, Source
from dynamometer.metrics.sources import NO_ERRORS


class Derivation(Protocol):
    """A rule that derives families from the families of one owner's sources.

    Attributes:
        name: the label `source` of errors of the derivation.
        owner: the owner of the sources.
        names: the names, in the text format, of the families that `families` needs.
    """

    name: str
    owner: str
    names: frozenset[str]

    def families(self, families: Sequence[Family]) -> Sequence[Family]:
        """Return the derived families: the same objects if nothing changed.

        Args:
            families: the merged families that have one of `names`; the same sequence as before if
                nothing changed.
        """


class DerivedSource:
    """A derivation as a source of the page; see `MetricsSource`."""

    def __init__(
        self, derivation: Derivation, current_sources: Callable[[str], Sequence[Source]]
    ) -> None:
        """Wrap a derivation.

        Args:
            derivation: the rule that derives the families.
            current_sources: a function that returns the sources of an owner, as this refresh has
                read them; see `MetricsPage.current_sources`.
        """
        self.name = derivation.name
        self.owner = derivation.owner
        self._derivation = derivation
        self._current_sources = current_sources
        self._wanted = Selection.of(names=derivation.names)
        self._filters: dict[str, FamilyFilter] = {}
        self._merger = Merger()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        sources = self._current_sources(self.owner)
        filters = {s.name: self._filters.get(s.name) or FamilyFilter(self._wanted) for s in sources}
        self._filters = filters
        chosen = [Source(s.name, filters[s.name].apply(s.families)) for s in sources]
        if len(chosen) == 1:
            return self._derivation.families(chosen[0].families)
        return self._derivation.families(self._merger.merge(chosen))

    @property
    def errors(self) -> Mapping[str, int]:
        """Empty: a derivation that fails raises an exception."""
        return NO_ERRORS
