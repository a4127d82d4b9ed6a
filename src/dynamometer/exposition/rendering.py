"""Render a page: join the headers and the sample lines of its families."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Final

from isal import isal_zlib

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.exposition.untyped import UntypedFamilies, clashing_in_openmetrics

END_OF_OPENMETRICS: Final = b"# EOF\n"
# isal's level 1 takes 1 ms for 1.9 MB and is a tenth larger than zlib's level 6, which takes 18 ms.
_GZIP_LEVEL: Final = 1
_GZIP_WINDOW: Final = 31  # a window of 2**15 bytes, and the header of gzip
_MAX_BODIES: Final = 16


def render(families: Iterable[Family], *, openmetrics: bool = False) -> bytes:
    """Return the page of families.

    Args:
        families: the families; `render` does not check that their names differ. If the type of one
            family reserves a name of another in OpenMetrics, the type is `unknown` there.
        openmetrics: OpenMetrics 1.0.0, with `# EOF`, instead of the text format 0.0.4.
    """
    shown = list(families)
    if openmetrics:
        return _join(UntypedFamilies(clashing_in_openmetrics).apply(shown), openmetrics=True)
    return _join(shown, openmetrics=False)


class Renderer:
    """Renders a page again and again; safe to use from several threads.

    A rendered page is used again while all families are the same objects: for several scrapers
    between two refreshes, and for a directory in which nothing changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the following attributes
        self._families: tuple[Family, ...] = ()
        self._bodies: dict[tuple[Selection, bool, bool], bytes] = {}
        self._untyped = UntypedFamilies(clashing_in_openmetrics)

    def render(
        self,
        families: Sequence[Family],
        selection: Selection = EVERYTHING,
        *,
        openmetrics: bool = False,
        gzip: bool = False,
    ) -> bytes:
        """Return the page of the selected families.

        Args:
            families: all families of the page, with different names.
            selection: the families to show.
            openmetrics: OpenMetrics 1.0.0 instead of the text format 0.0.4.
            gzip: compress the page.
        """
        key = (selection, openmetrics, gzip)
        with self._lock:
            if tuple(families) != self._families or len(self._bodies) >= _MAX_BODIES:
                self._families, self._bodies = tuple(families), {}
            if key not in self._bodies:
                shown = self._untyped.apply(families) if openmetrics else families
                page = _join(selection.apply(shown), openmetrics=openmetrics)
                self._bodies[key] = _compress(page) if gzip else page
            return self._bodies[key]


def _join(families: Sequence[Family], *, openmetrics: bool) -> bytes:
    pieces: list[bytes] = []
    for family in families:
        if openmetrics:
            pieces.append(family.metadata.openmetrics_header)
            pieces.extend(family.openmetrics_chunks)
        else:
            pieces.append(family.metadata.text_header)
            pieces.extend(family.chunks)
    if openmetrics:
        pieces.append(END_OF_OPENMETRICS)
    return b"".join(pieces)


def _compress(page: bytes) -> bytes:
    return isal_zlib.compress(page, _GZIP_LEVEL, _GZIP_WINDOW)
