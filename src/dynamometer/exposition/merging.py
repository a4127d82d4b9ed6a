"""Merge the families of several sources into those of one page.

Every family is on a page once, and no series twice: the first source wins, and a label set's
histogram or summary comes whole from one source. What is left out is reported.

OpenMetrics reserves more names than the text format: a gauge `a` and a counter `a_total` are both
`a` there, and `a_created` belongs to the counter. A family whose type reserves a name that another
family of the page has is of type `unknown` there: its samples keep their names, and none is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from dynamometer.exposition.families import INNER_LABELS, Family, Metadata
from dynamometer.exposition.series import end_of_series, split_lines, split_series

_EXEMPLAR: Final = " # "


class Clash(StrEnum):
    """Why a part of a source is not on the page."""

    OVERLAP = "overlap"  # an earlier source has the same series
    TYPE_CONFLICT = "type_conflict"  # an earlier family has the name, with another type


@dataclass(frozen=True, slots=True)
class Omission:
    """A part of a source that is not on the page.

    Attributes:
        source: its name.
        winner: the name of the source that has the series, or the family, instead.
        family: the family's name.
        clash: why.
        label_sets: how many; all of the family where types clash.
    """

    source: str
    winner: str
    family: str
    clash: Clash
    label_sets: int


@dataclass(frozen=True, slots=True)
class Source:
    """What a source has now.

    Attributes:
        name: of the source.
        families: the very same objects as before where nothing changed.
    """

    name: str
    families: Sequence[Family]


@dataclass(frozen=True, slots=True)
class _Merged:
    parts: tuple[Family, ...]
    family: Family
    omissions: tuple[Omission, ...]


class _Place(NamedTuple):
    """Where a family is: which source, and which one of its families."""

    source: int
    number: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows from the sources' metadata alone.

    Attributes:
        names: of the sources.
        metadata: of their families.
        merged: the places of each family of the page.
        conflicts: families that are not on it, each with the source that has the name.
        untyped: text names of the families that OpenMetrics shows as `unknown`.
    """

    names: Sequence[str]
    metadata: Sequence[Sequence[Metadata]]
    merged: Sequence[Sequence[_Place]]
    conflicts: Sequence[tuple[_Place, str]]
    untyped: frozenset[str]

    def fits(self, sources: Sequence[Source]) -> bool:
        return [source.name for source in sources] == self.names and all(
            [family.metadata for family in source.families] == metadata
            for source, metadata in zip(sources, self.metadata, strict=True)
        )


class Merger:
    """Merges the same sources again and again, and does again only what changed."""

    def __init__(self) -> None:
        self._sources: tuple[Source, ...] = ()
        self._plan = _Plan([], [], [], [], frozenset())
        self._merged: dict[str, _Merged] = {}
        self._conflicts: dict[Family, Omission] = {}
        self._untyped: dict[Family, Sequence[Family]] = {}
        self.families: tuple[Family, ...] = ()
        self.omissions: tuple[Omission, ...] = ()

    def merge(self, sources: Sequence[Source]) -> tuple[Family, ...]:
        """The families of the page: those of the first source first, each once.

        The same tuple as before where nothing changed; what was left out is in `omissions`.

        Args:
            sources: in the order in which they win.
        """
        if self._unchanged(sources):
            return self.families
        self._sources = tuple(sources)
        if not self._plan.fits(sources):
            self._plan = _plan(sources)
        all_families = [source.families for source in sources]
        families = []
        joined: dict[str, _Merged] = {}
        for places in self._plan.merged:
            source, number = places[0]
            family = all_families[source][number]
            if len(places) > 1:
                joined[family.metadata.text_name] = merged = self._join(places)
                family = merged.family
            families.append(family)
        self._merged = joined
        if self._plan.untyped or self._untyped:
            families = self._with_untyped(families)
        self._report_omissions()
        if tuple(families) != self.families:
            self.families = tuple(families)
        return self.families

    def _unchanged(self, sources: Sequence[Source]) -> bool:
        return len(sources) == len(self._sources) and all(
            new.families is old.families and new.name == old.name
            for new, old in zip(sources, self._sources, strict=True)
        )

    def _at(self, place: _Place) -> Family:
        return self._sources[place.source].families[place.number]

    def _join(self, places: Sequence[_Place]) -> _Merged:
        families = tuple([self._at(place) for place in places])
        before = self._merged.get(families[0].metadata.text_name)
        if before is not None and before.parts == families:
            return before
        return _join(families, [self._sources[place.source].name for place in places])

    def _with_untyped(self, families: Sequence[Family]) -> list[Family]:
        before, self._untyped = self._untyped, {}
        shown: list[Family] = []
        for family in families:
            if family.metadata.text_name in self._plan.untyped:
                made = self._untyped[family] = before.get(family) or _untyped(family)
                shown += made
            else:
                shown.append(family)
        return shown

    def _report_omissions(self) -> None:
        conflicts: dict[Family, Omission] = {}
        for place, winner in self._plan.conflicts:
            family = self._at(place)
            conflicts[family] = self._conflicts.get(family) or _conflict(
                self._sources[place.source].name, winner, family
            )
        self._conflicts = conflicts
        omissions = (
            *conflicts.values(),
            *(part for merged in self._merged.values() for part in merged.omissions),
        )
        if omissions != self.omissions:
            self.omissions = omissions


def _plan(sources: Sequence[Source]) -> _Plan:
    merged: dict[str, list[_Place]] = {}
    owners: dict[str, _Place] = {}
    conflicts: list[tuple[_Place, str]] = []
    for place in _places(sources):
        metadata = _metadata(sources, place)
        names = metadata.text_names
        owner = next((owners[one] for one in (metadata.text_name, *names) if one in owners), None)
        if owner is None:
            owners.update(dict.fromkeys(names, place))
            merged[metadata.text_name] = [place]
        elif _compatible(_metadata(sources, owner), metadata):
            merged[metadata.text_name].append(place)
        else:
            conflicts.append((place, sources[owner.source].name))
    return _Plan(
        [source.name for source in sources],
        [[family.metadata for family in source.families] for source in sources],
        list(merged.values()),
        conflicts,
        _untyped_names([_metadata(sources, places[0]) for places in merged.values()]),
    )


def _untyped_names(page: Sequence[Metadata]) -> frozenset[str]:
    """Return the text names of the families whose type OpenMetrics cannot show on this page."""
    owners = Counter(name for metadata in page for name in metadata.text_names)
    reserved: set[str] = set()
    found: set[str] = set()
    for metadata in page:
        own, wanted = metadata.text_names, metadata.reserved_names
        taken = any(owners[name] > (name in own) for name in wanted)
        if taken or not reserved.isdisjoint(wanted):
            found.add(metadata.text_name)
        else:
            reserved |= wanted
    return frozenset(found)


def untyped_where_names_clash(families: Iterable[Family]) -> list[Family]:
    """Return the families of one page such that OpenMetrics can show all of them."""
    families = list(families)
    names = _untyped_names([family.metadata for family in families if family.in_openmetrics])
    return [
        one
        for family in families
        for one in (_untyped(family) if family.metadata.text_name in names else (family,))
    ]


class UntypedFamilies:
    """Families of one page whose names clash in the text format, split by sample name.

    Prometheus stores the samples of such a page and ignores the types: a counter `q_count` and a
    histogram `q` are shown as untyped `q_count`, `q_sum` and `q_bucket`.
    """

    def __init__(self) -> None:
        """Split nothing yet."""
        self._split: dict[Family, Sequence[Family]] = {}

    def apply(self, families: Sequence[Family]) -> Sequence[Family]:
        """Return the families of one page, each name and type once, without clashing names.

        A sample name may then have several families, which a merge joins. Families that were split
        before are the same objects as before.
        """
        owners = Counter(name for family in families for name in family.metadata.text_names)
        before, self._split = self._split, {}
        shown: list[Family] = []
        for family in families:
            if any(owners[name] > 1 for name in family.metadata.text_names):
                made = self._split[family] = before.get(family) or _split(family)
                shown += made
            else:
                shown.append(family)
        return shown if self._split else families


def _split(family: Family) -> Sequence[Family]:
    """Return an untyped family for each sample name of a family."""
    text = _lines_by_name(family.text_chunks)
    other = _openmetrics_lines_by_name(family)
    return [
        Family(
            Metadata(name, "unknown", family.metadata.documentation),
            frozenset({name}),
            (lines,),
            None if family.openmetrics_chunks is None else (other.get(name, lines),),
        )
        for name, lines in text.items()
    ]


def _untyped(family: Family) -> Sequence[Family]:
    """Return a family for the text page alone, and one for each sample name for OpenMetrics."""
    return [
        replace(family, in_openmetrics=False),
        *(
            Family(
                Metadata(name, "unknown", family.metadata.documentation),
                frozenset({name}),
                (lines,),
                in_text=False,
            )
            for name, lines in _openmetrics_lines_by_name(family).items()
        ),
    ]


def _openmetrics_lines_by_name(family: Family) -> dict[str, bytes]:
    """Return the lines of a family for OpenMetrics, as untyped families have them."""
    if family.openmetrics_chunks is None:
        return _lines_by_name(family.text_chunks)
    bare = {family.metadata.sample_name: family.metadata.text_name}
    return _lines_by_name(family.openmetrics_chunks, bare if family.metadata.bare else {})


def _lines_by_name(
    chunks: Sequence[bytes], renamed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, bytes]:
    """Return sample lines without exemplars, which untyped samples do not have, by sample name."""
    found: dict[str, list[str]] = {}
    for series, rest in split_lines(b"".join(chunks)):
        name = series.partition("{")[0]
        written = renamed.get(name, name)
        value, _, _ = rest.partition(_EXEMPLAR)
        found.setdefault(written, []).append(f"{written}{series[len(name) :]} {value}\n")
    return {name: "".join(lines).encode() for name, lines in found.items()}


def _places(sources: Sequence[Source]) -> Iterator[_Place]:
    for number, source in enumerate(sources):
        yield from (_Place(number, place) for place in range(len(source.families)))


def _metadata(sources: Sequence[Source], place: _Place) -> Metadata:
    return sources[place.source].families[place.number].metadata


def _compatible(owner: Metadata, metadata: Metadata) -> bool:
    return owner.text_name == metadata.text_name and owner.type == metadata.type


def _conflict(source: str, winner: str, family: Family) -> Omission:
    count = len({group for group, _ in _groups(family, family.chunks)})
    return Omission(source, winner, family.name, Clash.TYPE_CONFLICT, count)


def _join(families: tuple[Family, ...], sources: Sequence[str]) -> _Merged:
    """Families of one name: each label set from the first that has it."""
    owner_of: dict[str, str] = {}
    chunks: list[bytes] = []
    openmetrics: list[bytes] = []
    omissions: list[Omission] = []
    differ = any(family.openmetrics_chunks is not None for family in families)
    for source, family in zip(sources, families, strict=True):
        groups = dict.fromkeys(group for group, _ in _groups(family, family.chunks))
        taken = {group: owner_of[group] for group in groups if group in owner_of}
        owner_of.update({group: source for group in groups if group not in taken})
        chunks += _without(family, family.chunks, taken.keys())
        if differ:
            other = (
                family.chunks if family.openmetrics_chunks is None else family.openmetrics_chunks
            )
            openmetrics += _without(family, other, taken.keys())
        for winner in sorted(set(taken.values())):
            count = sum(1 for owner in taken.values() if owner == winner)
            omissions.append(Omission(source, winner, family.name, Clash.OVERLAP, count))
    first = families[0]
    joined = Family(
        first.metadata,
        frozenset().union(*(family.sample_names for family in families)),
        tuple(chunks),
        tuple(openmetrics) if differ else None,
    )
    return _Merged(families, joined, tuple(omissions))


def _without(family: Family, chunks: Sequence[bytes], taken: Iterable[str]) -> Sequence[bytes]:
    taken = set(taken)
    if not taken:
        return chunks
    kept = [line for group, line in _groups(family, chunks) if group not in taken]
    return ["".join(kept).encode()] if kept else []


def _groups(family: Family, chunks: Sequence[bytes]) -> Iterable[tuple[str, str]]:
    """Each sample line of a family, and the text of the label set that it belongs to."""
    inner = INNER_LABELS.get(family.metadata.type)
    for line in b"".join(chunks).decode().split("\n"):
        if not line or line.startswith("#"):
            continue
        series = line[: end_of_series(line)]
        if inner is not None:
            _, labels = split_series(series)
            yield repr([label for label in labels if label[0] != inner]), f"{line}\n"
        else:
            yield series, f"{line}\n"
