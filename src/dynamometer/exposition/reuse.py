"""Reuse families, and results computed from them, so that unchanged families cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from dynamometer.exposition.families import Family

Result = TypeVar("Result")


class UnchangedFamilies:
    """Replaces each family that looks the same as at the last call by the object of that call."""

    def __init__(self) -> None:
        self._last: tuple[Family, ...] = ()

    def reuse(self, families: Iterable[Family]) -> tuple[Family, ...]:
        """Return the families; the same tuple as the last time if all of them are unchanged."""
        last = {(family.metadata.text_name, family.metadata.type): family for family in self._last}
        reused = []
        for family in families:
            before = last.get((family.metadata.text_name, family.metadata.type))
            reused.append(before if before is not None and before.looks_like(family) else family)
        if tuple(reused) != self._last:  # families compare by identity
            self._last = tuple(reused)
        return self._last


class FamilyMap(Generic[Result]):
    """Applies a function to each family, and keeps a result as long as its family is present."""

    def __init__(self, function: Callable[[Family], Result]) -> None:
        self._function = function
        self._results: dict[Family, Result] = {}
        self._families: Sequence[Family] = ()
        self._last: tuple[Result, ...] = ()

    def apply(self, families: Sequence[Family]) -> tuple[Result, ...]:
        """Return the result of each family; the same tuple as the last time if all are the same."""
        if families is not self._families:
            known, function = self._results, self._function
            self._results = {
                family: known[family] if family in known else function(family)
                for family in families
            }
            self._families = families
            results = tuple([self._results[family] for family in families])
            if results != self._last:
                self._last = results
        return self._last
