"""The parts of a sample line: series, numbers, timestamps, exemplars."""

from __future__ import annotations

import math
import re
from typing import Final

from dynamometer.exposition.series import (
    Series,
    label_name,
    labels_text,
    metric_name,
    unescape,
)

NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
QUOTED: Final = r'"(?:[^"\\\n]|\\.)*"'
# Anything up to the closing brace: `_parse_labels` checks the content.
BRACES: Final = rf"\{{(?:{QUOTED}|[^\"}}\n])*\}}"
_NUMBER: Final = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf(?:inity)?|nan)",
    re.ASCII | re.IGNORECASE,
)
_SPACE: Final = r"[ \t]*"
# Like Prometheus, accept a value directly after the name: `a-1` is the series `a` with -1.
_SERIES: Final = re.compile(rf"({NAME})(?:{_SPACE}({BRACES}))?|({BRACES})", re.ASCII)
# Like Prometheus, accept labels without a comma between them.
_LABEL: Final = re.compile(
    rf"{_SPACE}(?:([a-zA-Z_][a-zA-Z0-9_]*)|({QUOTED})){_SPACE}(?:={_SPACE}({QUOTED}){_SPACE})?,?",
    re.ASCII,
)
# Labels in the form that we write, in any order.
_PLAIN_LABEL: Final = r'([a-zA-Z_][a-zA-Z0-9_]*)(="(?:[^"\\\n]|\\[\\n"])*")'
_EACH_LABEL: Final = re.compile(_PLAIN_LABEL, re.ASCII)
_PLAIN_LABELS: Final = re.compile(rf"\{{{_PLAIN_LABEL}(?:,{_PLAIN_LABEL})*\}}", re.ASCII)
_METRIC_NAME_LABEL: Final = "__name__"
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_MILLISECONDS: Final = 1000
_LARGEST_INTEGER: Final = 2**63
_MAX_EXEMPLAR_CHARACTERS: Final = 128


class GrammarError(ValueError):
    """A line, or a part of a line, is not valid."""


class SeriesParser:
    """Parses the series of lines, and remembers the series of the last page."""

    def __init__(self) -> None:
        self._known: dict[str, Series] = {}  # of the last page
        self._used: dict[str, Series] = {}  # of this page

    def begin_page(self) -> None:
        """Forget the series that are not on the last page."""
        self._known, self._used = self._used, {}

    def split(self, line: str) -> tuple[Series, str]:
        """Return the series at the beginning of a sample line, and the rest of the line.

        Raises:
            GrammarError: The line does not begin with a series.
        """
        # The text of a known series ends at the closing brace or, without braces, at a space.
        # A line without a brace or a space, such as "a1", must not match the series "a".
        end = line.rfind("}") + 1 or max(line.find(" "), 0)
        found = self._known.get(line[:end])
        if found is None:
            match = _SERIES.match(line)
            if match is None:
                raise GrammarError(f"not a sample: {line[:80]!r}")
            end = match.end()
            text = match[0]
            found = self._known.get(text) or self._used.get(text) or _parse_series(match)
        self._used[line[:end]] = found
        return found, line[end:]


def _parse_series(match: re.Match[str]) -> Series:
    name, braces = match[1], match[2] or match[3]
    if name and braces and _PLAIN_LABELS.fullmatch(braces):
        # These labels need no decoding, which takes two thirds of the time.
        written = sorted(_EACH_LABEL.findall(braces))
        names = {label for label, _ in written}
        if len(names) == len(written) and _METRIC_NAME_LABEL not in names:
            return Series(f"{name}{{{','.join([label + value for label, value in written])}}}")
    labels: dict[str, str] = {}
    if braces:
        quoted_name = _parse_labels(braces, labels)
        if name and quoted_name is not None:
            raise GrammarError(f"two metric names: {match[0][:80]!r}")
        name = name or quoted_name
    if not name:
        raise GrammarError(f"no metric name: {match[0][:80]!r}")
    return Series.of(name, labels)


def _parse_labels(braces: str, labels: dict[str, str]) -> str | None:
    """Parse labels into `labels`; return the metric's name if the braces contain it, else None.

    Like Prometheus in the text format, accept missing commas between labels.
    """
    name = None
    position, end = 1, len(braces) - 1
    while position < end:
        match = _LABEL.match(braces, position, end)
        if match is None:
            if not braces[position:end].strip(" \t"):
                break
            raise GrammarError(f"not a label: {braces[position : position + 40]!r}")
        plain, quoted, value = match.groups()
        if value is None:
            if name is not None or quoted is None:
                raise GrammarError(f"a label without a value: {match[0]!r}")
            name = metric_name(unquote(quoted))
        else:
            _add_label(labels, plain or unquote(quoted), unquote(value))
        position = match.end()
    return name


def _add_label(labels: dict[str, str], name: str, value: str) -> None:
    name = label_name(name)  # two different names may become equal here
    if not name or name == _METRIC_NAME_LABEL:
        raise GrammarError(f"not a label name: {name!r}")
    if name in labels:
        raise GrammarError(f"label {name!r} twice")
    labels[name] = value


def unquote(text: str) -> str:
    """Return the text between quotes, unescaped."""
    return unescape(text[1:-1])


def parse_number(text: str) -> str:
    """Return the text of a number as our pages write it: unchanged, or `NaN`, `+Inf`, `-Inf`.

    Raises:
        GrammarError: The text is not a number, or the number is too large.
    """
    if not _NUMBER.fullmatch(text):
        raise GrammarError(f"not a number: {text[:40]!r}")
    value = float(text)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        if text[-1].isdigit():
            raise GrammarError(f"a number out of range: {text[:40]!r}")
        return "+Inf" if value > 0 else "-Inf"
    return text


def text_timestamp(text: str) -> tuple[str, str]:
    """Return a timestamp of the text format (integer milliseconds) in seconds and milliseconds.

    The milliseconds of a time before 1970 are empty, because Prometheus refuses a text page with
    such a time.

    Raises:
        GrammarError: The text is not such a timestamp.
    """
    if not _INTEGER.fullmatch(text) or abs(int(text)) >= _LARGEST_INTEGER:
        raise GrammarError(f"not a timestamp in milliseconds: {text[:40]!r}")
    return repr(int(text) / _MILLISECONDS), "" if text.startswith("-") else text


def openmetrics_timestamp(text: str) -> tuple[str, str]:
    """Return a timestamp of OpenMetrics (seconds) in seconds and milliseconds.

    Raises:
        GrammarError: The text is not such a timestamp.
    """
    milliseconds = float(parse_number(text)) * _MILLISECONDS
    if not abs(milliseconds) < _LARGEST_INTEGER:
        raise GrammarError(f"not a timestamp in seconds: {text[:40]!r}")
    return text, "" if text.startswith("-") else str(int(milliseconds))


def exemplar_text(braces: str, value: str, timestamp: str | None) -> str:
    """Return an exemplar in our own form; empty if its labels exceed OpenMetrics' limit.

    Raises:
        GrammarError: A part of the exemplar is not valid.
    """
    labels: dict[str, str] = {}
    if _parse_labels(braces, labels) is not None:
        raise GrammarError(f"an exemplar with a metric name: {braces[:80]!r}")
    value = parse_number(value)
    stamp = f" {openmetrics_timestamp(timestamp)[0]}" if timestamp else ""
    if sum(len(name) + len(text) for name, text in labels.items()) > _MAX_EXEMPLAR_CHARACTERS:
        return ""
    return f"{{{labels_text(labels)}}} {value}{stamp}"


def parse_name(text: str) -> str:
    """Return a metric's name, written plain or quoted, in the legacy character set.

    Raises:
        GrammarError: The text is not a metric's name.
    """
    if re.fullmatch(NAME, text, re.ASCII):
        return text
    if re.fullmatch(QUOTED, text) and unquote(text):
        return metric_name(unquote(text))
    raise GrammarError(f"not a metric name: {text[:80]!r}")
