"""Families under other names, or with labels that they did not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from dynamometer.exposition.families import Family
from dynamometer.exposition.reuse import FamilyMap
from dynamometer.exposition.series import end_of_series, labels_text, series_text, split_series

_COMMENT: Final = "#"
_MOST_SERIES: Final = 500_000
_HEADER_WORDS: Final = 3


class Relabelling:
    """Adds constant labels and a prefix; a series' own label of a name wins.

    What was made of a family is kept as long as the family comes again.
    """

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        *,
        add_prefix: str = "",
        replaced_prefixes: Sequence[str] = (),
    ) -> None:
        """A way to relabel.

        Args:
            labels: constant ones.
            add_prefix: what names begin with afterwards; once, where they already do.
            replaced_prefixes: what goes in its place, where a name begins with one of them.
        """
        self._labels = dict(labels or {})
        self._add_prefix = add_prefix
        self._replaced = tuple(replaced_prefixes)
        self._series: dict[str, str] = {}
        self._derived = FamilyMap(self._relabel)

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """The families, relabelled; the same objects where they come again."""
        return self._derived.apply(families)

    def name(self, name: str) -> str:
        """A family's or a sample's name, with the prefix."""
        prefix = self._add_prefix
        if not prefix or name.startswith(prefix):
            return name
        for replaced in self._replaced:
            if name.startswith(replaced):
                return prefix + name[len(replaced) :]
        return prefix + name

    def _relabel(self, family: Family) -> Family:
        if not self._labels and not self._add_prefix:
            return family
        metadata = family.metadata
        other = family.openmetrics_chunks
        return Family(
            replace(metadata, name=self.name(metadata.name)),
            frozenset(map(self.name, family.sample_names)),
            tuple(self._chunk(chunk) for chunk in family.chunks),
            None if other is None else tuple(self._chunk(chunk) for chunk in other),
        )

    def _chunk(self, chunk: bytes) -> bytes:
        lines = []
        for line in chunk.decode().split("\n"):
            if line and not line.startswith(_COMMENT):
                end = end_of_series(line)
                lines.append(self._known(line[:end]) + line[end:])
            else:
                lines.append(self._header(line))
        return "\n".join(lines).encode()

    def _known(self, series: str) -> str:
        found = self._series.get(series)
        if found is None:
            if len(self._series) > _MOST_SERIES:
                self._series.clear()
            name, labels = split_series(series)
            merged = {**self._labels, **dict(labels)}
            found = self._series[series] = series_text(self.name(name), labels_text(merged))
        return found

    def _header(self, line: str) -> str:
        """A gauge histogram's `_gsum` and `_gcount` have headers of their own among the lines."""
        words = line.split(" ", 3)
        if line and len(words) >= _HEADER_WORDS:
            words[2] = self.name(words[2])
        return " ".join(words)
