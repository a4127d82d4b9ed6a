"""Pages that are kept until one of their families changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dynamometer.exposition.compress import compress
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import Selection
from dynamometer.exposition.render import render

# More selections than scrapers have in turn; each keeps a page.
_MOST_KEPT: Final = 16


@dataclass(slots=True)
class _Page:
    source: Sequence[Family]
    families: Sequence[Family]
    plain: bytes
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
            return self._page(families, selection, openmetrics).plain

    def compressed(
        self, families: Sequence[Family], selection: Selection, *, openmetrics: bool
    ) -> bytes:
        """The same page, with gzip."""
        with self._lock:
            page = self._page(families, selection, openmetrics)
            if page.compressed is None:
                page.compressed = compress(page.plain)
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
        page = _Page(families, chosen, render(chosen, openmetrics=openmetrics))
        self._pages.pop(key, None)
        if len(self._pages) >= _MOST_KEPT:
            del self._pages[next(iter(self._pages))]
        self._pages[key] = page
        return page
