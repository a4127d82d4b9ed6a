"""Which families of a page are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynamometer.exposition.families import Family, Metadata


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice of whole families.

    Attributes:
        prefixes: families whose name, as the text format has it, begins with one of them;
            none: all.
        names: of those, families that are called so or have a sample that is; none: all.
        exclude_prefixes: families that are left out before anything is chosen.
    """

    prefixes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    exclude_prefixes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        prefixes: Iterable[str] = (),
        names: Iterable[str] = (),
        exclude_prefixes: Iterable[str] = (),
    ) -> Selection:
        """A selection out of any iterables.

        Raises:
            TypeError: one of them is a single text.
        """
        for given in (prefixes, names, exclude_prefixes):
            if isinstance(given, str):
                raise TypeError(f"a row of texts is wanted, not {given!r}")
        return cls(tuple(prefixes), frozenset(names), tuple(exclude_prefixes))

    def matches_prefix(self, metadata: Metadata) -> bool:
        """Whether the prefixes let a family pass."""
        name = metadata.text_name
        if self.exclude_prefixes and name.startswith(self.exclude_prefixes):
            return False
        return not self.prefixes or name.startswith(self.prefixes)

    def apply(self, families: Sequence[Family]) -> Sequence[Family]:
        """The chosen families, in their order; the very same sequence where all are chosen."""
        if self == EVERYTHING:
            return families
        names = self.names
        if names:  # first, because it leaves few
            families = [
                family
                for family in families
                if not names.isdisjoint(family.sample_names)
                or not names.isdisjoint(family.metadata.names)
            ]
        if self.prefixes or self.exclude_prefixes:
            families = [family for family in families if self.matches_prefix(family.metadata)]
        return families


EVERYTHING = Selection()


class FamilyFilter:
    """A selection out of one source, the same tuple as long as the source has the same."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._last: tuple[Sequence[Family], tuple[Family, ...]] = ((), ())

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """The chosen families."""
        before, chosen = self._last
        if before is not families:
            found = tuple(self._selection.apply(families))
            chosen = chosen if found == chosen else found
            self._last = (families, chosen)
        return chosen
