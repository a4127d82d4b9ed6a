"""Selections of the families of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.series import metric_name


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of whole families, by their names in the text format.

    Attributes:
        prefixes: select families whose name begins with one of the prefixes; all if empty.
        names: of the families that `prefixes` selects, keep those that have one of the names, or
            a sample with one of the names; all if empty.
        exclude_prefixes: omit families whose name begins with one of the prefixes.
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
        """Return a selection; see the attributes. `http.` means `http_`, the name on the page.

        Raises:
            TypeError: An argument is a single string.
        """
        for argument in (prefixes, names, exclude_prefixes):
            if isinstance(argument, str):
                raise TypeError(f"expected a list of strings, not {argument!r}")
        return cls(
            tuple(map(metric_name, prefixes)),
            frozenset(map(metric_name, names)),
            tuple(map(metric_name, exclude_prefixes)),
        )

    def matches_prefix(self, metadata: Metadata) -> bool:
        """Return whether the prefixes select a family."""
        name = metadata.text_name
        if self.exclude_prefixes and name.startswith(self.exclude_prefixes):
            return False
        return not self.prefixes or name.startswith(self.prefixes)

    def apply(self, families: Sequence[Family]) -> Sequence[Family]:
        """Return the selected families in their order; the same sequence if all are selected."""
        if self == EVERYTHING:
            return families
        names = self.names
        if names:  # first, because then few families remain for the prefixes
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
    """Selects families of one source; returns the same tuple for the same families."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._last: tuple[Sequence[Family], tuple[Family, ...]] = ((), ())

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """Return the selected families."""
        before, chosen = self._last
        if before is not families:
            found = tuple(self._selection.apply(families))
            chosen = chosen if found == chosen else found
            self._last = (families, chosen)
        return chosen
