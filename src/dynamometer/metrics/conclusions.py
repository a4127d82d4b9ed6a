"""Families that are concluded from an engine's own, of the same refresh of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merge import Merger, Source
from dynamometer.metrics.sources import NO_ERRORS


class Conclusion(Protocol):
    """What somebody concludes from the families of the sources of one owner.

    `name` is what its errors are counted under, and `names` are the families that it looks at, by
    the names that the text format has.
    """

    name: str
    owner: str
    names: frozenset[str]

    def families(self, families: Sequence[Family]) -> Sequence[Family]:
        """What follows from them: the same objects where nothing changed.

        Args:
            families: those of `names` that there are; each once, and no series twice. The very
                same sequence as before where nothing in them changed.
        """


class ConcludedSource:
    """A conclusion as one more source of the page; see `MetricsSource`."""

    def __init__(self, conclusion: Conclusion, given: Callable[[], Sequence[Source]]) -> None:
        """Nothing is concluded yet.

        Args:
            conclusion: from what to what.
            given: the sources of its owner, as they were just answered.
        """
        self.name = conclusion.name
        self.owner = conclusion.owner
        self._conclusion = conclusion
        self._given = given
        self._wanted = Selection.of(names=conclusion.names)
        self._filters: dict[str, FamilyFilter] = {}
        self._merger = Merger()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        given = self._given()
        filters = {s.name: self._filters.get(s.name) or FamilyFilter(self._wanted) for s in given}
        self._filters = filters
        chosen = [Source(s.name, filters[s.name].apply(s.families)) for s in given]
        if len(chosen) == 1:
            return self._conclusion.families(chosen[0].families)
        return self._conclusion.families(self._merger.merge(chosen))

    @property
    def errors(self) -> Mapping[str, int]:
        """None: a conclusion that fails raises."""
        return NO_ERRORS
