"""Families to a page: headers and kept bytes joined, nothing formatted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dynamometer.exposition.families import Family
from dynamometer.exposition.merging import untyped_where_names_clash

END_OF_OPENMETRICS: Final = b"# EOF\n"


def join(families: Iterable[Family], *, openmetrics: bool) -> bytes:
    """Families one after the other, without an end."""
    pieces: list[bytes] = []
    for family in families:
        if openmetrics and family.in_openmetrics:
            other = family.openmetrics_chunks
            pieces.append(family.metadata.openmetrics_header)
            pieces.extend(family.chunks if other is None else other)
        elif not openmetrics and family.in_text:
            pieces.append(family.metadata.text_header)
            pieces.extend(family.text_chunks)
    return b"".join(pieces)


def render(families: Iterable[Family], *, openmetrics: bool = False) -> bytes:
    """Return the page of families.

    Args:
        families: with different names; `render` does not check them. Where the type of one
            reserves a name of another in OpenMetrics, it is of type `unknown` there.
        openmetrics: OpenMetrics 1.0.0, with its `# EOF`, instead of the text format 0.0.4.
    """
    if not openmetrics:
        return join(families, openmetrics=False)
    return join(untyped_where_names_clash(families), openmetrics=True) + END_OF_OPENMETRICS
