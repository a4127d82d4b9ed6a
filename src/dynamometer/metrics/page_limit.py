"""The limit of a page's size: families that do not fit are omitted, the largest first.

A page of tens of megabytes delays or ends the program that scrapes it.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from typing import Final, NamedTuple

from dynamometer.exposition.families import Family
from dynamometer.exposition.merging import Source
from dynamometer.exposition.rendering import END_OF_OPENMETRICS
from dynamometer.exposition.reuse import FamilyMap

logger = logging.getLogger(__name__)

DEFAULT_MAX_PAGE_BYTES: Final = 16 << 20


class OversizedFamily(NamedTuple):
    """A family that does not fit on the page."""

    source: str
    family: str


class PageLimit:
    """Omits the largest families of a page that is too large; one thread at a time may use it.

    Attributes:
        max_bytes: the size of the whole page in either format, not compressed.
        omitted: the families that the last page does not have.
    """

    def __init__(self) -> None:
        self.max_bytes = DEFAULT_MAX_PAGE_BYTES
        self.omitted: tuple[OversizedFamily, ...] = ()
        self._sizes: dict[int, FamilyMap[int]] = {}  # by the place of the source
        self._last: tuple[Sequence[Source], Sequence[Source]] = ((), ())

    def apply(self, sources: Sequence[Source], *, whole: Container[str]) -> Sequence[Source]:
        """Return the sources with the families that fit; the same families if nothing changed.

        Args:
            sources: all sources of the page.
            whole: the names of the sources whose families are never omitted.
        """
        before, result = self._last
        if not _same(sources, before):
            result = self._without_largest(sources, whole)
            self._last = sources, result
        return result

    def _without_largest(
        self, sources: Sequence[Source], whole: Container[str]
    ) -> Sequence[Source]:
        sizes = [
            self._sizes.setdefault(place, FamilyMap(_size)).apply(source.families)
            for place, source in enumerate(sources)
        ]
        excess = sum(map(sum, sizes)) + len(END_OF_OPENMETRICS) - self.max_bytes
        by_size = sorted(
            (
                (size, place, number)
                for place, source in enumerate(sources)
                for number, size in enumerate(sizes[place])
                if source.name not in whole
            ),
            reverse=True,
        )
        omitted: set[tuple[int, int]] = set()
        for size, place, number in by_size:
            if excess <= 0:
                break
            omitted.add((place, number))
            excess -= size
        self._note_omitted(
            [
                OversizedFamily(sources[p].name, sources[p].families[n].metadata.text_name)
                for p, n in omitted
            ]
        )
        if not omitted:
            return sources
        return [
            Source(
                source.name,
                [
                    family
                    for number, family in enumerate(source.families)
                    if (place, number) not in omitted
                ],
            )
            for place, source in enumerate(sources)
        ]

    def _note_omitted(self, omitted: Sequence[OversizedFamily]) -> None:
        """Log the families that did not fit for the first time, and those that fit again."""
        known, self.omitted = self.omitted, tuple(sorted(omitted))
        for new in sorted(set(omitted) - set(known)):
            logger.warning(
                "%s of %s is not on the page: the page would be larger than %d bytes "
                "(--max-page-bytes)", new.family, new.source, self.max_bytes,
            )  # fmt: skip
        for old in sorted(set(known) - set(omitted)):
            logger.info("%s of %s is on the page again", old.family, old.source)


def _size(family: Family) -> int:
    """Return the bytes of a family in the format in which the family is larger."""
    metadata = family.metadata
    text, openmetrics = family.chunks, family.openmetrics_chunks
    size = sum(map(len, text))
    if openmetrics is not text:
        size = max(size, sum(map(len, openmetrics)))
    return size + max(len(metadata.text_header), len(metadata.openmetrics_header))


def _same(sources: Sequence[Source], others: Sequence[Source]) -> bool:
    return len(sources) == len(others) and all(
        one.families is other.families and one.name == other.name
        for one, other in zip(sources, others, strict=True)
    )
