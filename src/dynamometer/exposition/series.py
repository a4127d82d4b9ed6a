"""The left part of a sample line: a metric's name and its labels, in the form that we write.

Labels are sorted by name and escaped as prometheus_client 0.26 does. In names, underscores replace
the characters outside the legacy character set (`escaping=underscores`, the default of a scraper).
Therefore two series are the same if and only if their texts are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

_METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_NOT_METRIC: Final = re.compile(r"[^a-zA-Z0-9_:]|^[0-9]", re.ASCII)
_NOT_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]|^[0-9]", re.ASCII)
_LABEL: Final = re.compile(r'([^=,{]+)="((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(r'\\[\\n"]')
_UNESCAPED: Final = {"\\\\": "\\", "\\n": "\n", '\\"': '"'}


@dataclass(frozen=True)
class Series:
    """A series, which is the text of its name and labels.

    Attributes:
        text: in our own form, such as `a_total{x="1",y="2"}`.
    """

    text: str

    @classmethod
    def of(cls, name: str, labels: Mapping[str, str]) -> Series:
        """Return the series of a metric's name and its labels."""
        return cls(series_text(name, labels_text(labels)))

    @cached_property
    def name(self) -> str:
        """The metric's name."""
        return self.text.partition("{")[0]

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """The labels, sorted by name."""
        labels = _LABEL.findall(self.text, len(self.name))
        return {name: unescape(value) for name, value in labels}

    def renamed(self, name: str) -> Series:
        """Return the series of another metric with the same labels."""
        return Series(name + self.text[len(self.name) :])


def metric_name(name: str) -> str:
    """Return a metric's name in the legacy character set."""
    return name if _METRIC_NAME.fullmatch(name) else _NOT_METRIC.sub("_", name)


def label_name(name: str) -> str:
    """Return a label's name in the legacy character set."""
    return name if _LABEL_NAME.fullmatch(name) else _NOT_LABEL.sub("_", name)


def escape(value: str) -> str:
    """Return a label's value as it is written between quotes."""
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def unescape(value: str) -> str:
    """Return a label's value from the text between quotes; unknown escapes stay."""
    if "\\" in value:
        return _ESCAPED.sub(lambda match: _UNESCAPED[match.group()], value)
    return value


def label_text(name: str, value: str) -> str:
    """Return the text of one label: `name="value"`."""
    return f'{label_name(name)}="{escape(value)}"'


def labels_text(labels: Mapping[str, str]) -> str:
    """Return the text of a series' labels, without the braces; empty without labels."""
    return ",".join([label_text(name, labels[name]) for name in sorted(labels)])


def series_text(name: str, labels: str) -> str:
    """Return the text of a series from its metric's name and the text of its labels."""
    return f"{metric_name(name)}{{{labels}}}" if labels else metric_name(name)
