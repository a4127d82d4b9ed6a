"""The left part of a sample line: a name and its labels, in the one form that we write.

Labels are sorted by name and escaped as prometheus_client 0.26 does; names with characters
outside the legacy set get underscores in their place (`escaping=underscores`, what a
scraper is given that asks for nothing else). In this form two series are the same exactly
when their bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

_METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_NOT_METRIC: Final = re.compile(r"[^a-zA-Z0-9_:]|^[0-9]", re.ASCII)
_NOT_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]|^[0-9]", re.ASCII)
_LABEL: Final = re.compile(r'([^=,{]+)="((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(r'\\[\\n"]')
_UNESCAPED: Final = {"\\\\": "\\", "\\n": "\n", '\\"': '"'}


def metric_name(name: str) -> str:
    """A metric's name in the legacy character set."""
    return name if _METRIC_NAME.fullmatch(name) else _NOT_METRIC.sub("_", name)


def label_name(name: str) -> str:
    """A label's name in the legacy character set."""
    return name if _LABEL_NAME.fullmatch(name) else _NOT_LABEL.sub("_", name)


def escape(value: str) -> str:
    """A label's value as it stands between quotes."""
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def unescape(value: str) -> str:
    """A label's value from what stands between quotes; other backslashes stay."""
    if "\\" in value:
        return _ESCAPED.sub(lambda match: _UNESCAPED[match.group()], value)
    return value


def label_text(name: str, value: str) -> str:
    """One label: `name="value"`."""
    return f'{label_name(name)}="{escape(value)}"'


def labels_text(labels: Mapping[str, str]) -> str:
    """All labels of a series, without the braces; empty where there are none."""
    return ",".join([label_text(name, labels[name]) for name in sorted(labels)])


def series_text(name: str, labels: str) -> str:
    """A series from its metric's name and the text of its labels."""
    return f"{metric_name(name)}{{{labels}}}" if labels else metric_name(name)


def split_labels(text: str) -> list[tuple[str, str]]:
    """Names and values out of the text of labels, in its order.

    Args:
        text: in our own form, with or without the braces and the name before them.
    """
    brace = text.find("{")
    return [(name, unescape(value)) for name, value in _LABEL.findall(text, max(brace, 0))]


def split_series(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The metric's name and the labels of a series in our own form."""
    brace = text.find("{")
    return (text, []) if brace < 0 else (text[:brace], split_labels(text[brace:]))


def split_lines(lines: bytes) -> Iterable[tuple[str, str]]:
    """Series and the rest (value, timestamp, exemplar) of sample lines in our own form.

    Comment lines are left out.
    """
    for line in lines.decode().split("\n"):
        if not line or line[0] == "#":
            continue
        end = end_of_series(line)
        yield line[:end], line[end + 1 :]


def end_of_series(line: str) -> int:
    """Where the series ends that a sample line in our own form begins with."""
    brace, space = line.find("{"), line.find(" ")
    if brace < 0 or space < brace:
        return space
    position = brace + 1
    while line[position] != "}":
        match = _LABEL.match(line, position)
        assert match, line
        position = match.end() + (line[match.end()] == ",")
    return position + 1
