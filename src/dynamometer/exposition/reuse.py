"""The same objects for the same families, so that what was made of them can be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynamometer.exposition.families import Family


def same(one: Family, other: Family) -> bool:
    """Whether two families look the same on every page."""
    return (
        one.metadata == other.metadata
        and one.chunks == other.chunks
        and one.openmetrics_chunks == other.openmetrics_chunks
        and (one.in_text, one.in_openmetrics) == (other.in_text, other.in_openmetrics)
    )


class UnchangedFamilies:
    """Remembers a source's families from one time to the next."""

    def __init__(self) -> None:
        self._last: tuple[Family, ...] = ()

    def reuse(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """The families, each the object of the last time where it is the same.

        The very tuple of the last time where all are.
        """
        last = {(family.metadata.text_name, family.metadata.type): family for family in self._last}
        kept = tuple(
            [
                before
                if (before := last.get((family.metadata.text_name, family.metadata.type)))
                is not None
                and same(before, family)
                else family
                for family in families
            ]
        )
        if kept != self._last:  # families are equal to themselves only
            self._last = kept
        return self._last


class FamilyMap:
    """What is made of each family of a source, kept for as long as the family comes again."""

    def __init__(self, make: Callable[[Family], Family]) -> None:
        """Nothing is made yet.

        Args:
            make: makes a family of another; the other itself where it needs no change.
        """
        self._make = make
        self._last: tuple[Sequence[Family], tuple[Family, ...]] = ((), ())
        self._made: dict[Family, Family] = {}

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """What is made of the families: the same tuple where the very same sequence comes again."""
        before, made = self._last
        if before is not families:
            self._made = {
                family: self._made.get(family) or self._make(family) for family in families
            }
            made = tuple(self._made.values())
            self._last = (families, made)
        return made
