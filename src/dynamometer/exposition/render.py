"""Families to a page: headers and kept bytes joined, nothing formatted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dynamometer.exposition.families import Family

END_OF_OPENMETRICS: Final = b"# EOF\n"


def render_text(families: Iterable[Family]) -> bytes:
    """A page of the text format 0.0.4."""
    pieces: list[bytes] = []
    for family in families:
        pieces.append(family.metadata.text_header)
        pieces.extend(family.chunks)
    return b"".join(pieces)


def render_openmetrics(families: Iterable[Family]) -> bytes:
    """A page of OpenMetrics 1.0.0, with its `# EOF`."""
    pieces: list[bytes] = []
    for family in families:
        pieces.append(family.metadata.openmetrics_header)
        other = family.openmetrics_chunks
        pieces.extend(family.chunks if other is None else other)
    pieces.append(END_OF_OPENMETRICS)
    return b"".join(pieces)


def render(families: Iterable[Family], *, openmetrics: bool = False) -> bytes:
    """A page in the format asked for."""
    return render_openmetrics(families) if openmetrics else render_text(families)
