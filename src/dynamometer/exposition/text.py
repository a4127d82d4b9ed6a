"""The text format 0.0.4, parsed.

Every line must be in the format; which lines there are is nothing to lose a page for, as Prometheus
takes them too. The first TYPE and the first HELP of a name stand, and a sample belongs to the last
TYPE that has a place for its name. Two families that one page cannot have are for the merger.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import replace
from typing import Final

from dynamometer.errors import ExpositionError
from dynamometer.exposition.builder import FamilyBuilder
from dynamometer.exposition.families import SUFFIXES, Family, Metadata
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
_TYPES: Final = {
    "counter": "counter",
    "gauge": "gauge",
    "untyped": "unknown",
    "summary": "summary",
    "histogram": "histogram",
}
_DOCUMENTATION_ESCAPE: Final = re.compile(r"\\[\\n]")
_TOTAL: Final = "_total"
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
            ExpositionError: a line is not in the format; names it.
        """
        self._series.begin_page()
        found = _Page(self._series)
        number = 0
        try:
            for number, line in enumerate(page.split(b"\n"), 1):  # noqa: B007  # for the error
                found.take(line.decode().strip(" \t\r"))
        except (GrammarError, UnicodeDecodeError) as error:
            raise ExpositionError(f"line {number} of the text page: {error}") from None
        return self._unchanged.keep(found.families())


class _Page:
    def __init__(self, series: SeriesParser) -> None:
        self._series = series
        self._documentation: dict[str, str] = {}
        self._types: dict[str, str] = {}
        self._builders: dict[tuple[str, str], FamilyBuilder] = {}  # by name and type
        self._owners: dict[str, FamilyBuilder] = {}  # by the names of samples
        self._counted: set[tuple[str, str]] = set()

    def take(self, line: str) -> None:
        """One line, without white space around it."""
        if line.startswith("#"):
            match = _COMMENT.fullmatch(line)
            if match:
                self._take_header(match)
        elif line:
            self._take_sample(line)

    def families(self) -> tuple[Family, ...]:
        """All families, in their order; no two of them have a name and a type in common."""
        for builder in self._builders.values():
            documentation = self._documentation_of(builder.metadata)
            builder.metadata = replace(builder.metadata, documentation=documentation)
        families = [builder.family() for builder in self._builders.values()]
        created = {(one.metadata.created_name, one.metadata.documentation) for one in families}
        filled = {one.metadata.text_name for one in families if one.sample_names}
        return tuple(
            family
            for family in families
            if not _is_created(family.metadata, created)
            and (family.sample_names or family.metadata.text_name not in filled)
        )

    def _documentation_of(self, metadata: Metadata) -> str:
        """Its HELP; a counter's may be of either of its names, if that is no other family's."""
        for name in (metadata.text_name, metadata.name):
            if self._types.get(name, metadata.type) == metadata.type:
                documentation = self._documentation.get(name)
                if documentation is not None:
                    return documentation
        return ""

    def _take_header(self, match: re.Match[str]) -> None:
        word, written, rest = match.groups()
        if written is None:
            raise GrammarError(f"{word} of nothing")
        name = parse_name(written)
        if word == "TYPE":
            if rest not in _TYPES:
                raise GrammarError(f"an unknown type of {name}: {rest!r}")
            self._begin(name, _TYPES[rest])
        elif name not in self._documentation:
            self._documentation[name] = _DOCUMENTATION_ESCAPE.sub(
                lambda found: "\n" if found[0] == r"\n" else "\\", rest or ""
            )

    def _begin(self, name: str, kind: str) -> None:
        """From here on, samples of a family's names are its own."""
        if kind == "counter" and name == _TOTAL:
            kind = "unknown"  # a counter has a name before its suffix
        builder = self._builder(name, self._types.setdefault(name, kind))
        metadata = builder.metadata
        names = {metadata.name + suffix for suffix in SUFFIXES.get(metadata.type, ("",))}
        if metadata.type == "counter":
            names.add(name)
        self._owners.update(dict.fromkeys(names, builder))

    def _begin_untyped(self, name: str) -> FamilyBuilder:
        """A sample without a header is a family of its own."""
        self._types.setdefault(name, "unknown")
        self._owners[name] = builder = self._builder(name, "unknown")
        return builder

    def _builder(self, name: str, kind: str) -> FamilyBuilder:
        name = name.removesuffix(_TOTAL) if kind == "counter" else name
        key = (name, kind)
        if key not in self._builders:
            self._builders[key] = FamilyBuilder(Metadata(name, kind))
        return self._builders[key]

    def _take_sample(self, line: str) -> None:
        series, rest = self._series.known(line) or self._split(line)
        match = _VALUE.fullmatch(rest)
        if not match:
            raise GrammarError(f"no value: {line[:80]!r}")
        _, value = parse_number(match[1])
        name, text, milliseconds = series.name, series.text, match[2] or ""
        builder = self._owners.get(name) or self._begin_untyped(name)
        metadata = builder.metadata
        if metadata.type == "counter":
            if name == metadata.name:
                name = metadata.text_name
                text = series_text(name, text.partition("{")[2].removesuffix("}"))
            if (text, milliseconds) in self._counted:
                return  # under the counter's other name
            self._counted.add((text, milliseconds))
        seconds = repr(int(milliseconds) / _MILLISECONDS) if milliseconds else ""
        builder.add(name, text, value, seconds=seconds, milliseconds=milliseconds)

    def _split(self, line: str) -> tuple[Series, str]:
        match = _SERIES.match(line)
        if not match:
            raise GrammarError(f"no sample: {line[:80]!r}")
        return self._series.parse(match[0]), line[match.end() :]


def _is_created(metadata: Metadata, created: Set[tuple[str, str]]) -> bool:
    """Whether it is what other clients write of a counter's begin: a gauge with the counter's HELP.

    A gauge of such a name that has words of its own is somebody's.
    """
    is_gauge = metadata.type in ("gauge", "unknown")
    return is_gauge and (metadata.name, metadata.documentation) in created
