"""Merge the families of several sources into those of one page.

Each family and each series is on the page once. If two sources have the same series, the first
wins. A histogram or summary is never mixed from two sources. `Merger.omissions` lists the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from dynamometer.exposition.families import Family
from dynamometer.exposition.samples import Sample


class OmissionReason(StrEnum):
    """The reason for an omission."""

    OVERLAP = "overlap"  # an earlier source has the same series
    TYPE_CONFLICT = "type_conflict"  # an earlier family has the name, with another type


@dataclass(frozen=True, slots=True)
class Omission:
    """Series, or a family, that were omitted because another source has them.

    Attributes:
        source: the name of the source.
        winner: the name of the source whose series, or family, is on the page instead.
        family: the family's name.
        reason: the reason.
    """

    source: str
    winner: str
    family: str
    reason: OmissionReason


@dataclass(frozen=True, slots=True)
class Source:
    """The current families of a source.

    Attributes:
        name: the name of the source.
        families: the families; the same object as before if nothing changed.
        label: the text of a label that every series of the source has. Sources with different
            values of the label have different series, and need no comparison. Empty without such a
            label.
    """

    name: str
    families: Sequence[Family]
    label: str = ""


class _Part(NamedTuple):
    """A family of one source."""

    source: str
    family: Family
    label: str


_Joined: TypeAlias = tuple[Family, Sequence[Omission]]


class Merger:
    """Merges the families of the same sources again and again.

    Attributes:
        families: the families of the page.
        omissions: the series and families of the sources that are not on the page.
    """

    def __init__(self) -> None:
        self.families: tuple[Family, ...] = ()
        self.omissions: tuple[Omission, ...] = ()
        self._sources: tuple[Source, ...] = ()
        self._joined: dict[tuple[_Part, ...], _Joined] = {}

    def merge(self, sources: Sequence[Source]) -> tuple[Family, ...]:
        """Return the families of the page, those of the first source first.

        If nothing changed, `families` and `omissions` are the same tuples as before. Families of
        one name and type are joined again only if one of them changed.

        Args:
            sources: in order of priority, highest first.
        """
        if self._unchanged(sources):
            return self.families
        self._sources = tuple(sources)
        parts_by_name, omissions = _parts_by_name(sources)
        known, self._joined = self._joined, {}
        families = []
        for parts in parts_by_name.values():
            family = parts[0].family
            if len(parts) > 1:
                key = tuple(parts)
                self._joined[key] = known.get(key) or _join(parts)
                family, overlaps = self._joined[key]
                omissions += overlaps
            families.append(family)
        if tuple(families) != self.families:  # families compare by identity
            self.families = tuple(families)
        if tuple(omissions) != self.omissions:
            self.omissions = tuple(omissions)
        return self.families

    def _unchanged(self, sources: Sequence[Source]) -> bool:
        return len(sources) == len(self._sources) and all(
            new.families is old.families and (new.name, new.label) == (old.name, old.label)
            for new, old in zip(sources, self._sources, strict=True)
        )


def _parts_by_name(
    sources: Sequence[Source],
) -> tuple[dict[str, list[_Part]], list[Omission]]:
    """Group the families of all sources by text name; return the groups and the type conflicts."""
    found: dict[str, list[_Part]] = {}
    owners: dict[str, str] = {}  # maps each reserved name to the family that reserves it
    conflicts: list[Omission] = []
    for source in sources:
        for family in source.families:
            metadata, part = family.metadata, _Part(source.name, family, source.label)
            name, names = metadata.text_name, metadata.text_names
            if owners.keys().isdisjoint(names):
                owners.update(dict.fromkeys(names, name))
                found[name] = [part]
                continue
            owner = owners.get(name) or next(owners[one] for one in names if one in owners)
            first = found[owner][0]
            if owner == name and first.family.metadata.type == metadata.type:
                found[name].append(part)
            else:
                conflicts.append(
                    Omission(source.name, first.source, family.name, OmissionReason.TYPE_CONFLICT)
                )
    return found, conflicts


def _join(parts: Sequence[_Part]) -> _Joined:
    """Join families of one name and type; take each label set from the first source that has it."""
    metadata = parts[0].family.metadata
    if all(part.label for part in parts) and len({part.label for part in parts}) == len(parts):
        joined = Family.of_samples(metadata, [s for part in parts for s in part.family.samples])
        return joined, ()
    source_of_label_set: dict[str, str] = {}
    samples: list[Sample] = []
    omissions: dict[Omission, None] = {}
    for source, family, _ in parts:
        added: dict[str, str] = {}
        for sample in family.samples:
            label_set = metadata.label_set(sample.series)
            if winner := source_of_label_set.get(label_set):
                omissions[Omission(source, winner, family.name, OmissionReason.OVERLAP)] = None
            else:
                added[label_set] = source
                samples.append(sample)
        source_of_label_set |= added
    first = parts[0].family
    joined = first if len(samples) == len(first.samples) else Family.of_samples(metadata, samples)
    return joined, tuple(omissions)
