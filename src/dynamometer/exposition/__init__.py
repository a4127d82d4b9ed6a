"""Exposition formats: parse, transform, merge and render metric families, without any I/O."""

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.negotiation import Format, choose_format
from dynamometer.exposition.parser import Parsed, Parser, parse
from dynamometer.exposition.rendering import render
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series
from dynamometer.exposition.totals import Totals

__all__ = [
    "Family",
    "Format",
    "Metadata",
    "Parsed",
    "Parser",
    "Sample",
    "Series",
    "Totals",
    "choose_format",
    "parse",
    "render",
]
