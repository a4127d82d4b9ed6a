"""The page of several sources, in both formats, made again only where something changed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.exposition.merging import Merger, Omission, Source
from dynamometer.exposition.pages import Pages
from dynamometer.process.forks import renew_in_child


class MergedPage:
    """Sources' families in, pages out; safe to use from several threads.

    Nothing is formatted here. A page is joined again when a family on it is another object,
    and compressed again when it was joined again and somebody wants it so.
    """

    def __init__(self) -> None:
        renew_in_child(self)

    def renew(self) -> None:
        """Start without families: a child of `fork` may have those of a merge half done."""
        self._merger = Merger()
        self._pages = Pages()
        self._lock = threading.Lock()

    @property
    def omissions(self) -> tuple[Omission, ...]:
        """What is not on the page because an earlier source has it, as of the last update."""
        return self._merger.omissions

    def update(self, sources: Sequence[Source]) -> bool:
        """Take in what the sources have now; whether the page is another.

        Args:
            sources: in the order in which they win, and in which their families stand.
        """
        with self._lock:
            before = self._merger.families
            return self._merger.merge(sources) is not before

    def render(self, selection: Selection = EVERYTHING, *, openmetrics: bool = False) -> bytes:
        """The page of the chosen families.

        Args:
            selection: which families.
            openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.
        """
        return self._pages.render(self._merger.families, selection, openmetrics=openmetrics)

    def compressed(self, selection: Selection = EVERYTHING, *, openmetrics: bool = False) -> bytes:
        """The same page, with gzip."""
        return self._pages.compressed(self._merger.families, selection, openmetrics=openmetrics)
