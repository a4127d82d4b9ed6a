"""Families derived from an engine's own families, in the same refresh of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merging import Merger, Source
from dynamometer.metrics.sources import NO_ERRORS


class Derivation(Protocol):
    """A function from the families of one owner's sources to derived families.

    Attributes:
        name: the label `source` of its errors.
        owner: the owner of the sources.
        names: the names, in the text format, of the families to derive from.
    """

    name: str
    owner: str
    names: frozenset[str]

    def families(self, families: Sequence[Family]) -> Sequence[Family]:
        """Return the derived families: the same objects if nothing changed.

        Args:
            families: the families of `names` that exist, merged; the same sequence as before if
                nothing changed.
        """


class DerivedSource:
    """A derivation as a source of the page; see `MetricsSource`."""

    def __init__(
        self, derivation: Derivation, current_sources: Callable[[str], Sequence[Source]]
    ) -> None:
        """Wrap a derivation.

        Args:
            derivation: derives the families.
            current_sources: returns the sources of an owner as read in this refresh; see
                `MetricsPage.current_sources`.
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
