"""Rename the series of a source, and add labels to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from dynamometer.exposition.families import Family
from dynamometer.exposition.reuse import FamilyMap
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series, label_name, metric_name

_MAX_SERIES: Final = 500_000


class Relabelling:
    """Adds constant labels and a prefix; a label that a series already has stays.

    Remembers the new text of each series, and the result for each family that is still present.
    """

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        *,
        add_prefix: str = "",
        replaced_prefixes: Sequence[str] = (),
    ) -> None:
        """Choose the labels and the prefix.

        Args:
            labels: constant labels.
            add_prefix: the prefix of all new names; a name that already has it does not change.
            replaced_prefixes: prefixes that `add_prefix` replaces instead of being put in front
                of them; the first one that matches a name applies.
        """
        self._labels = {label_name(name): value for name, value in (labels or {}).items()}
        self._add_prefix = add_prefix
        self._replaced = tuple(map(metric_name, replaced_prefixes))
        self._series: dict[str, Series] = {}
        self._families = FamilyMap(self._relabel)

    def apply(self, families: Sequence[Family]) -> tuple[Family, ...]:
        """Return the relabelled families; the same objects for the same families."""
        return self._families.apply(families)

    def rename(self, name: str) -> str:
        """Return a family's or a sample's name with the prefix."""
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
        known, new = self._series.get, self._new_series
        return Family.of_samples(
            replace(family.metadata, name=self.rename(family.metadata.name)),
            [
                Sample(known(sample[0].text) or new(sample[0]), *sample[1:])
                for sample in family.samples
            ],
        )

    def _new_series(self, series: Series) -> Series:
        if len(self._series) >= _MAX_SERIES:
            self._series.clear()
        labels = {**self._labels, **series.labels}
        found = self._series[series.text] = Series.of(self.rename(series.name), labels)
        return found
