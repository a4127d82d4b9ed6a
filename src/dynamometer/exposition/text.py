"""The text format 0.0.4, parsed.

Stricter than prometheus_client's parser, as the format's description has it: what a lax
parser would take half of is an error here, with its line.
"""

from __future__ import annotations

import re
from typing import Final

from dynamometer.errors import ExpositionError
from dynamometer.exposition.builder import FamilyBuilder
from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.grammar import (
    BRACES,
    NAME,
    QUOTED,
    GrammarError,
    Series,
    SeriesParser,
    parse_name,
    parse_number,
)
from dynamometer.exposition.series import series_text
from dynamometer.exposition.unchanged import Unchanged

_COMMENT: Final = re.compile(
    rf"#[ \t]+(HELP|TYPE)(?:[ \t]+({QUOTED}|[^ \t]+)(?:[ \t]+(.*))?)?", re.DOTALL
)
_SERIES: Final = re.compile(rf"{NAME}[ \t]*{BRACES}|{NAME}(?=[ \t])|{BRACES}", re.ASCII)
_VALUE: Final = re.compile(r"[ \t]*([^ \t{}]+)(?:[ \t]+(-?[0-9]+))?", re.ASCII)
_SUFFIXES: Final = {
    "counter": ("",),
    "gauge": ("",),
    "untyped": ("",),
    "summary": ("", "_count", "_sum"),
    "histogram": ("_count", "_sum", "_bucket"),
}
_DOCUMENTATION_ESCAPE: Final = re.compile(r"\\[\\n]")
_TOTAL: Final = "_total"
_CREATED: Final = "_created"
_MILLISECONDS: Final = 1000


class TextParser:
    """Parses one page after the other, and is quick where series come again."""

    def __init__(self) -> None:
        self._unchanged = Unchanged()
        self._series = SeriesParser(strict=False)

    def parse(self, page: bytes) -> tuple[Family, ...]:
        """The families of a page, without `_created` ones: the last page's objects where they
        are the same.

        Raises:
            ExpositionError: the page is not in the format; names the line.
        """
        self._series.begin_page()
        found = _Page(self._series)
        number = 0
        try:
            for number, line in enumerate(page.split(b"\n"), 1):  # noqa: B007  # for the error
                found.take(line.decode().strip(" \t\r"))
            return self._unchanged.keep(found.families())
        except (GrammarError, UnicodeDecodeError) as error:
            raise ExpositionError(f"line {number} of the text page: {error}") from None


class _OpenFamily:
    """A family whose lines are being read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.type: str | None = None
        self.documentation: str | None = None
        self.builder: FamilyBuilder | None = None

    def allowed(self) -> set[str]:
        """What its samples may be called."""
        return {self.name + suffix for suffix in _SUFFIXES[self.type or "untyped"]}

    def begun(self) -> FamilyBuilder:
        """Where its samples go; from the first one on its header is closed."""
        if self.builder is None:
            kind = self.type or "untyped"
            name = self.name.removesuffix(_TOTAL) if kind == "counter" else self.name
            if not name:
                raise GrammarError(f"a counter of no name: {self.name}")
            self.builder = FamilyBuilder(
                Metadata(name, "unknown" if kind == "untyped" else kind, self.documentation or "")
            )
        return self.builder


class _Page:
    def __init__(self, series: SeriesParser) -> None:
        self._series = series
        self._families: dict[str, _OpenFamily] = {}
        self._current: _OpenFamily | None = None
        self._allowed: set[str] = set()

    def take(self, line: str) -> None:
        """One line, without white space around it."""
        if line.startswith("#"):
            match = _COMMENT.fullmatch(line)
            if match:
                self._take_header(match)
        elif line:
            self._take_sample(line)

    def families(self) -> tuple[Family, ...]:
        """All families, in their order."""
        families = [family.begun().family() for family in self._families.values()]
        counting = {
            family.metadata.name + _CREATED
            for family in families
            if family.metadata.type in ("counter", "histogram", "summary")
        }
        # Counters that differ in `_total` alone would be one family on our page: the first is.
        shown: dict[str, Family] = {}
        for family in families:
            if family.metadata.name not in counting:
                shown.setdefault(family.metadata.text_name, family)
        return tuple(shown.values())

    def _take_header(self, match: re.Match[str]) -> None:
        word, written, rest = match.groups()
        if written is None:
            raise GrammarError(f"{word} of nothing")
        name = parse_name(written)
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _OpenFamily(name)
        elif family is not self._current or family.builder is not None:
            raise GrammarError(f"{word} of {name} after its samples, or twice")
        self._current = family
        if word == "HELP":
            if family.documentation is not None:
                raise GrammarError(f"a second HELP of {name}")
            family.documentation = _DOCUMENTATION_ESCAPE.sub(
                lambda found: "\n" if found[0] == r"\n" else "\\", rest or ""
            )
        else:
            if family.type is not None:
                raise GrammarError(f"a second TYPE of {name}")
            if rest not in _SUFFIXES:
                raise GrammarError(f"an unknown type of {name}: {rest!r}")
            family.type = rest
        self._allowed = family.allowed()

    def _take_sample(self, line: str) -> None:
        series, rest = self._series.known(line) or self._split(line)
        match = _VALUE.fullmatch(rest)
        if not match:
            raise GrammarError(f"no value: {line[:80]!r}")
        _, value = parse_number(match[1])
        if series.name not in self._allowed:
            self._begin_untyped(series.name)
        family = self._current
        assert family is not None
        name, text = series.name, series.text
        if family.type == "counter" and not name.endswith(_TOTAL):
            name += _TOTAL
            text = series_text(name, text.partition("{")[2].removesuffix("}"))
        milliseconds = match[2] or ""
        seconds = repr(int(milliseconds) / _MILLISECONDS) if milliseconds else ""
        family.begun().add(name, text, value, seconds=seconds, milliseconds=milliseconds)

    def _split(self, line: str) -> tuple[Series, str]:
        match = _SERIES.match(line)
        if not match:
            raise GrammarError(f"no sample: {line[:80]!r}")
        return self._series.parse(match[0]), line[match.end() :]

    def _begin_untyped(self, name: str) -> None:
        """A sample without a header is a family of its own."""
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _OpenFamily(name)
        elif family.type is not None or family.documentation is not None:
            raise GrammarError(f"the samples of {name} are not in one place")
        self._current = family
        self._allowed = {name}
