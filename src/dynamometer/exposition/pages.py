"""Pages that are kept until one of their families changes, and then only in part made anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dynamometer.exposition import compress
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import Selection
from dynamometer.exposition.rendering import END_OF_OPENMETRICS, join

# More selections than scrapers have in turn; each keeps a page.
_MOST_KEPT: Final = 16
# Larger parts compress better, smaller ones are made anew more seldom. The first are small: what
# changes at each scrape (a process's uptime) stands there. Sizes are rounded, or one longer
# number would move all that follows into other parts.
_FIRST_PART_BLOCKS: Final = 2
_PART_BLOCKS: Final = 32
_BLOCK_BYTES: Final = 4096


@dataclass(slots=True)
class _Part:
    """Some families of a page, one after the other, as bytes; and the same deflated, if wanted."""

    families: tuple[Family, ...]
    plain: bytes
    deflated: bytes = b""

    def deflate(self) -> bytes:
        if not self.deflated:
            self.deflated = compress.deflate(self.plain)
        return self.deflated


@dataclass(slots=True)
class _Page:
    source: Sequence[Family]
    families: Sequence[Family]
    parts: Sequence[_Part]
    plain: bytes | None = None
    compressed: bytes | None = None


class Pages:
    """Rendered pages by selection and format; safe to use from several threads."""

    def __init__(self) -> None:
        self._pages: dict[tuple[Selection, bool], _Page] = {}
        self._lock = threading.Lock()

    def render(
        self, families: Sequence[Family], selection: Selection, *, openmetrics: bool
    ) -> bytes:
        """The page of the chosen families; the same object where none of them changed.

        Args:
            families: all families; a source that has nothing new gives the same objects.
            selection: which of them.
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.
        """
        with self._lock:
            page = self._page(families, selection, openmetrics)
            if page.plain is None:
                page.plain = b"".join([part.plain for part in page.parts])
            return page.plain

    def compressed(
        self, families: Sequence[Family], selection: Selection, *, openmetrics: bool
    ) -> bytes:
        """The same page, with gzip."""
        with self._lock:
            page = self._page(families, selection, openmetrics)
            if page.compressed is None:
                page.compressed = compress.gzip(
                    [part.plain for part in page.parts], [part.deflate() for part in page.parts]
                )
            return page.compressed

    def _page(self, families: Sequence[Family], selection: Selection, openmetrics: bool) -> _Page:
        key = (selection, openmetrics)
        page = self._pages.get(key)
        if page is not None and page.source is families:
            return page
        chosen = selection.apply(families)
        if page is not None and list(chosen) == list(page.families):
            page.source = families
            return page
        before = {} if page is None else {part.families: part for part in page.parts}
        page = _Page(families, chosen, list(_parts(chosen, before, openmetrics=openmetrics)))
        self._pages.pop(key, None)
        if len(self._pages) >= _MOST_KEPT:
            del self._pages[next(iter(self._pages))]
        self._pages[key] = page
        return page


def _parts(
    families: Sequence[Family], before: dict[tuple[Family, ...], _Part], *, openmetrics: bool
) -> Iterator[_Part]:
    """The page in parts; those of the page before where their families are the same."""
    for group in _groups(families):
        yield before.get(group) or _Part(group, join(group, openmetrics=openmetrics))
    if openmetrics:
        yield _END


def _groups(families: Sequence[Family]) -> Iterator[tuple[Family, ...]]:
    """Families in rows of about 128 KiB, the first ones smaller."""
    group: list[Family] = []
    blocks = 0
    full = _FIRST_PART_BLOCKS
    for family in families:
        group.append(family)
        blocks += sum(map(len, family.chunks)) // _BLOCK_BYTES + 1
        if blocks >= full:
            yield tuple(group)
            group, blocks = [], 0
            full = min(2 * full, _PART_BLOCKS)
    if group:
        yield tuple(group)


_END: Final = _Part((), END_OF_OPENMETRICS)
