"""A page of either format, as families."""

from __future__ import annotations

from dynamometer.exposition.families import Family
from dynamometer.exposition.openmetrics import OpenMetricsParser
from dynamometer.exposition.text import TextParser


def parse(page: bytes, *, openmetrics: bool = False) -> tuple[Family, ...]:
    """The families of a page, without `_created` series.

    Whoever reads a page again and again keeps a `TextParser` or an `OpenMetricsParser`.

    Args:
        page: the whole page.
        openmetrics: OpenMetrics 1.0.0 instead of text 0.0.4.

    Raises:
        ExpositionError: the page is not in the format; names the line.
    """
    return OpenMetricsParser().parse(page) if openmetrics else TextParser().parse(page)
