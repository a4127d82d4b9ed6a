"""Parsing of the pages that tests write."""

from __future__ import annotations

from dynamometer.exposition.families import Family
from dynamometer.exposition.parser import Parser

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def parse(page: bytes, *, openmetrics: bool = False) -> tuple[Family, ...]:
    """Return the families of a page without an invalid line."""
    return PageParser(openmetrics=openmetrics).parse(page)


class PageParser:
    """A parser of the pages of one source; an invalid line fails the test."""

    def __init__(self, *, openmetrics: bool = False) -> None:
        self._parser = Parser()
        self._content_type = OPENMETRICS if openmetrics else ""

    def parse(self, page: bytes) -> tuple[Family, ...]:
        """Return the families of one page."""
        parsed = self._parser.parse(page, self._content_type)
        assert not parsed.dropped, parsed.fault
        return parsed.families
