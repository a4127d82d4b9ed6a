"""Merge the families of several sources into those of one page.

Every family is on a page once, and every series once: the first source wins, and the whole
histogram or summary of a label set comes from one source. `Merger.omissions` lists the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from dynamometer.exposition.families import Family
from dynamometer.exposition.samples import Sample


class Clash(StrEnum):
    """The reason for an omission."""

    OVERLAP = "overlap"  # an earlier source has the same series
    TYPE_CONFLICT = "type_conflict"  # an earlier family has the name, with another type


@dataclass(frozen=True, slots=True)
class Omission:
    """A part of a source that is not on the page.

    Attributes:
        source: the name of the source.
        winner: the name of the source whose series, or family, is on the page instead.
        family: the family's name.
        clash: the reason.
    """

    source: str
    winner: str
    family: str
    clash: Clash


@dataclass(frozen=True, slots=True)
class Source:
    """The current families of a source.

    Attributes:
        name: the name of the source.
        families: the families; the same object as before if nothing changed.
    """

    name: str
    families: Sequence[Family]


class _Part(NamedTuple):
    """A family of one source."""

    source: str
    family: Family


_Joined: TypeAlias = tuple[Family, Sequence[Omission]]


class Merger:
    """Merges the families of the same sources again and again.

    Attributes:
        families: the families of the page.
        omissions: the parts of the sources that are not on the page.
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
            sources: in the order in which they win.
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
        if tuple(families) != self.families:  # families are equal to themselves only
            self.families = tuple(families)
        if tuple(omissions) != self.omissions:
            self.omissions = tuple(omissions)
        return self.families

    def _unchanged(self, sources: Sequence[Source]) -> bool:
        return len(sources) == len(self._sources) and all(
            new.families is old.families and new.name == old.name
            for new, old in zip(sources, self._sources, strict=True)
        )


def _parts_by_name(
    sources: Sequence[Source],
) -> tuple[dict[str, list[_Part]], list[Omission]]:
    """Return the parts of each family of the page by text name, and the type conflicts."""
    found: dict[str, list[_Part]] = {}
    owners: dict[str, str] = {}  # the text name of the family that has a name
    conflicts: list[Omission] = []
    for source in sources:
        for family in source.families:
            metadata, part = family.metadata, _Part(source.name, family)
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
                    Omission(source.name, first.source, family.name, Clash.TYPE_CONFLICT)
                )
    return found, conflicts


def _join(parts: Sequence[_Part]) -> _Joined:
    """Join families of one name and type: each label set comes from the first that has it."""
    metadata = parts[0].family.metadata
    owners: dict[str, str] = {}  # the source of each label set
    samples: list[Sample] = []
    omissions: dict[Omission, None] = {}
    for source, family in parts:
        own: dict[str, str] = {}
        for sample in family.samples:
            label_set = metadata.label_set(sample.series)
            if winner := owners.get(label_set):
                omissions[Omission(source, winner, family.name, Clash.OVERLAP)] = None
            else:
                own[label_set] = source
                samples.append(sample)
        owners |= own
    first = parts[0].family
    joined = first if len(samples) == len(first.samples) else Family.of_samples(metadata, samples)
    return joined, tuple(omissions)
