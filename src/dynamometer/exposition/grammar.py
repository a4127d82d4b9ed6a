"""The parts of a line that both formats have: series, numbers, timestamps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from dynamometer.exposition.series import (
    label_name,
    labels_text,
    metric_name,
    series_text,
    unescape,
)

NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
QUOTED: Final = r'"(?:[^"\\\n]|\\.)*"'
# Up to the closing brace, whatever is between: `parse_series` looks closer.
BRACES: Final = rf"\{{(?:{QUOTED}|[^\"}}\n])*\}}"
_NUMBER: Final = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf(?:inity)?|nan)",
    re.ASCII | re.IGNORECASE,
)
_SERIES: Final = re.compile(rf"({NAME})?[ \t]*({BRACES})?", re.ASCII)
_SPACE: Final = r"[ \t]*"
_LABEL: Final = re.compile(
    rf"{_SPACE}(?:([a-zA-Z_][a-zA-Z0-9_]*)|({QUOTED})){_SPACE}(?:={_SPACE}({QUOTED}){_SPACE})?",
    re.ASCII,
)
_RESERVED: Final = "__"


class GrammarError(ValueError):
    """A line, or a part of one, is not in the format."""


@dataclass(frozen=True, slots=True)
class Series:
    """The left part of a sample line.

    Attributes:
        name: its metric's name.
        labels: by name.
        text: in our own form.
    """

    name: str
    labels: dict[str, str]
    text: str


class SeriesParser:
    """Parses the left parts of lines, and remembers those of the last page."""

    def __init__(self, *, strict: bool) -> None:
        """Nothing is remembered yet.

        Args:
            strict: as OpenMetrics has it: no white space, no comma behind the last label.
        """
        self._strict = strict
        self._known: dict[str, Series] = {}
        self._used: dict[str, Series] = {}

    def begin_page(self) -> None:
        """Forget what the last page did not have."""
        self._known, self._used = self._used, {}

    def parse(self, text: str) -> Series:
        """A series.

        Raises:
            GrammarError: it is none.
        """
        found = self._known.get(text) or self._used.get(text) or self._parse(text)
        self._used[text] = found
        return found

    def known(self, line: str) -> tuple[Series, str] | None:
        """The series that a line begins with and the rest of it, if the last page had it too.

        Args:
            line: a sample's, without an exemplar.
        """
        end = line.rfind("}") + 1 or line.find(" ")
        found = self._known.get(line[:end])
        if found is None:
            return None
        self._used[line[:end]] = found
        return found, line[end:]

    def _parse(self, text: str) -> Series:
        match = _SERIES.fullmatch(text)
        if not match or (self._strict and " " in text.partition("{")[0]):
            raise GrammarError(f"no series: {text[:80]!r}")
        name, braces = match[1], match[2]
        labels: dict[str, str] = {}
        if braces:
            named = self._labels(braces, labels)
            if bool(name) == (named is not None):
                raise GrammarError(f"no name, or two: {text[:80]!r}")
            name = name or named
        if not name:
            raise GrammarError(f"no name: {text[:80]!r}")
        return Series(name, labels, series_text(name, labels_text(labels)))

    def _labels(self, braces: str, labels: dict[str, str]) -> str | None:
        """Take labels into `labels`; the metric's name, where it is quoted among them."""
        name = None
        position, end = 1, len(braces) - 1
        while position < end:
            match = _LABEL.match(braces, position, end)
            if not match or (self._strict and " " in braces[position : match.start(3)]):
                if not self._strict and not braces[position:end].strip(" \t"):
                    break
                raise GrammarError(f"no label: {braces[position : position + 40]!r}")
            plain, quoted, value = match.groups()
            if value is None:
                if name is not None or quoted is None:
                    raise GrammarError(f"a label without value: {match[0]!r}")
                name = metric_name(unquote(quoted))
            else:
                _add_label(labels, plain or unquote(quoted), unquote(value))
            position = match.end()
            if position < end:
                if braces[position] != ",":
                    raise GrammarError(f"no comma between labels: {braces[position:][:40]!r}")
                position += 1
                if position == end and self._strict:
                    raise GrammarError("a comma behind the last label")
        return name


def _add_label(labels: dict[str, str], name: str, value: str) -> None:
    name = label_name(name)  # two names that become one are a label twice
    if not name or name.startswith(_RESERVED):
        raise GrammarError(f"no name of a label: {name!r}")
    if name in labels:
        raise GrammarError(f"label {name!r} twice")
    labels[name] = value


def unquote(text: str) -> str:
    """What stands between quotes."""
    return unescape(text[1:-1])


def parse_number(text: str) -> tuple[float, str]:
    """A number, and how it is to be written: as it was, except for the special ones.

    Raises:
        GrammarError: it is none.
    """
    if not _NUMBER.fullmatch(text):
        raise GrammarError(f"no number: {text[:40]!r}")
    value = float(text)
    if math.isnan(value):
        return value, "NaN"
    if math.isinf(value):
        return value, "+Inf" if value > 0 else "-Inf"
    return value, text


def parse_name(text: str) -> str:
    """A metric's name, plain or quoted, in the legacy character set.

    Raises:
        GrammarError: it is none.
    """
    if re.fullmatch(NAME, text, re.ASCII):
        return text
    if re.fullmatch(QUOTED, text) and unquote(text):
        return metric_name(unquote(text))
    raise GrammarError(f"no metric name: {text[:80]!r}")
