"""The families of several sources as those of one page.

Every family is on a page once, and no series twice: the first source wins, and a label set's
histogram or summary comes whole from one source. What is left out is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from dynamometer.exposition.families import Family
from dynamometer.exposition.series import end_of_series, split_series

_INNER_LABELS: Final = {"histogram": "le", "gaugehistogram": "le", "summary": "quantile"}


class Clash(StrEnum):
    """Why a part of a source is not on the page."""

    OVERLAP = "overlap"  # an earlier source has the same series
    TYPE_CONFLICT = "type_conflict"  # an earlier family has the name, with another type


@dataclass(frozen=True, slots=True)
class LeftOut:
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
    left_out: tuple[LeftOut, ...]


class Merger:
    """Merges the same sources again and again, and does again only what changed."""

    def __init__(self) -> None:
        self._sources: tuple[Source, ...] = ()
        self._merged: dict[str, _Merged] = {}
        self.families: tuple[Family, ...] = ()
        self.left_out: tuple[LeftOut, ...] = ()

    def merge(self, sources: Sequence[Source]) -> tuple[Family, ...]:
        """The families of the page: those of the first source first, each once.

        The same tuple as before where nothing changed; what was left out is in `left_out`.

        Args:
            sources: in the order in which they win.
        """
        if self._unchanged(sources):
            return self.families
        self._sources = tuple(sources)
        parts: dict[str, list[tuple[str, Family]]] = {}
        owners: dict[str, tuple[str, Family]] = {}
        conflicts: list[LeftOut] = []
        for source in sources:
            for family in source.families:
                owner = _owner(owners, family)
                if owner is None:
                    owners.update(
                        dict.fromkeys(family.metadata.reserved_names, (source.name, family))
                    )
                    parts[family.name] = [(source.name, family)]
                elif _compatible(owner[1], family):
                    parts[family.name].append((source.name, family))
                else:
                    conflicts.append(_conflict(source.name, owner[0], family))
        self._merged = {name: self._join(name, found) for name, found in parts.items()}
        self.left_out = (
            *conflicts,
            *(part for merged in self._merged.values() for part in merged.left_out),
        )
        families = tuple([merged.family for merged in self._merged.values()])
        if families != self.families:
            self.families = families
        return self.families

    def _unchanged(self, sources: Sequence[Source]) -> bool:
        return len(sources) == len(self._sources) and all(
            new.families is old.families and new.name == old.name
            for new, old in zip(sources, self._sources, strict=True)
        )

    def _join(self, name: str, parts: Sequence[tuple[str, Family]]) -> _Merged:
        families = tuple([family for _, family in parts])
        before = self._merged.get(name)
        if before is not None and before.parts == families:
            return before
        if len(parts) == 1:
            return _Merged(families, families[0], ())
        return _join(families, [source for source, _ in parts])


def _owner(owners: dict[str, tuple[str, Family]], family: Family) -> tuple[str, Family] | None:
    for name in (family.name, *family.metadata.reserved_names):
        if name in owners:
            return owners[name]
    return None


def _compatible(owner: Family, family: Family) -> bool:
    return owner.name == family.name and owner.metadata.type == family.metadata.type


def _conflict(source: str, winner: str, family: Family) -> LeftOut:
    count = len({group for group, _ in _groups(family, family.chunks)})
    return LeftOut(source, winner, family.name, Clash.TYPE_CONFLICT, count)


def _join(families: tuple[Family, ...], sources: Sequence[str]) -> _Merged:
    """Families of one name: each label set from the first that has it."""
    owner_of: dict[str, str] = {}
    chunks: list[bytes] = []
    openmetrics: list[bytes] = []
    left_out: list[LeftOut] = []
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
            left_out.append(LeftOut(source, winner, family.name, Clash.OVERLAP, count))
    first = families[0]
    joined = Family(
        first.metadata,
        frozenset().union(*(family.sample_names for family in families)),
        tuple(chunks),
        tuple(openmetrics) if differ else None,
    )
    return _Merged(families, joined, tuple(left_out))


def _without(family: Family, chunks: Sequence[bytes], taken: Iterable[str]) -> Sequence[bytes]:
    taken = set(taken)
    if not taken:
        return chunks
    kept = [line for group, line in _groups(family, chunks) if group not in taken]
    return ["".join(kept).encode()] if kept else []


def _groups(family: Family, chunks: Sequence[bytes]) -> Iterable[tuple[str, str]]:
    """Each sample line of a family, and the text of the label set that it belongs to."""
    inner = _INNER_LABELS.get(family.metadata.type)
    for line in b"".join(chunks).decode().split("\n"):
        if not line or line.startswith("#"):
            continue
        series = line[: end_of_series(line)]
        if inner is not None:
            _, labels = split_series(series)
            yield repr([label for label in labels if label[0] != inner]), f"{line}\n"
        else:
            yield series, f"{line}\n"
