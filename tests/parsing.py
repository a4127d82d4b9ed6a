"""Pages that tests write themselves, read."""

from __future__ import annotations

from dynamometer.exposition.families import Family
from dynamometer.exposition.parser import Parser

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def parse(page: bytes, *, openmetrics: bool = False) -> tuple[Family, ...]:
    """Return the families of a page of which every line can be read."""
    return PageParser(openmetrics=openmetrics).parse(page)


class PageParser:
    """Parses pages of one source of which every line can be read."""

    def __init__(self, *, openmetrics: bool = False) -> None:
        self._parser = Parser()
        self._content_type = OPENMETRICS if openmetrics else ""

    def parse(self, page: bytes) -> tuple[Family, ...]:
        """Return the families of one page."""
        parsed = self._parser.parse(page, self._content_type)
        assert not parsed.dropped, parsed.fault
        return parsed.families
