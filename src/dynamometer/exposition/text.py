"""The text format 0.0.4, parsed.

Stricter than prometheus_client's parser, as the format's description has it: what a lax
parser would take half of is an error here, with its line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
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
from dynamometer.exposition.openmetrics_rules import check_bound, group_of
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
_COUNTING: Final = ("counter", "summary", "histogram")
_MILLISECONDS: Final = 1000


class TextParser:
    """Parses one page after the other, and is quick where series come again."""

    def __init__(self) -> None:
        self._unchanged = Unchanged()
        self._series = SeriesParser(strict=False)
        self._histograms: dict[str, Sequence[Series]] = {}

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
            families = found.families()
            self._check_histograms(found.histograms())
            return self._unchanged.keep(families)
        except (GrammarError, UnicodeDecodeError) as error:
            raise ExpositionError(f"line {number} of the text page: {error}") from None

    def _check_histograms(self, histograms: dict[str, Sequence[Series]]) -> None:
        """Look at histograms' series where they are not the last page's."""
        for name, all_series in histograms.items():
            if self._histograms.get(name) != all_series:
                _check_histogram(all_series, name)
        self._histograms = histograms


class _OpenFamily:
    """A family whose lines are being read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.type: str | None = None
        self.documentation: str | None = None
        self.builder: FamilyBuilder | None = None
        self.series: list[Series] = []

    def allowed(self) -> set[str]:
        """What its samples may be called."""
        return {self.name + suffix for suffix in _SUFFIXES[self.type or "untyped"]}

    def metadata(self) -> Metadata:
        """What its header says."""
        kind = self.type or "untyped"
        name = self.name.removesuffix(_TOTAL) if kind == "counter" else self.name
        if not name:
            raise GrammarError(f"a counter of no name: {self.name}")
        return Metadata(name, "unknown" if kind == "untyped" else kind, self.documentation or "")

    def begun(self) -> FamilyBuilder:
        """Where its samples go; from the first one on its header is closed."""
        if self.builder is None:
            self.builder = FamilyBuilder(self.metadata())
        return self.builder

    def join(self, other: _OpenFamily) -> None:
        """Take in the HELP or the samples that a counter has under its other name."""
        if self.documentation is None:
            self.documentation = other.documentation
        self.builder = self.builder or other.builder
        if self.builder is not None:
            self.builder.metadata = self.metadata()


class _Page:
    def __init__(self, series: SeriesParser) -> None:
        self._series = series
        self._families: dict[str, _OpenFamily] = {}
        self._current: _OpenFamily | None = None
        self._allowed: set[str] = set()
        self._created = ""
        self._seen: set[str] = set()

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
        self._join_counters()
        created = self._created_names()
        shown: dict[str, Family] = {}
        for one in self._families.values():
            family = one.begun().family()
            if _is_created(one, created):
                continue
            before = shown.get(family.metadata.text_name)
            if before is None or not before.sample_names:
                shown[family.metadata.text_name] = family
            elif family.sample_names:
                raise GrammarError(f"two families would be {family.metadata.text_name} on a page")
        return tuple(shown.values())

    def histograms(self) -> dict[str, Sequence[Series]]:
        """The series of each histogram, in their order."""
        found = self._families.values()
        return {family.name: family.series for family in found if family.type == "histogram"}

    def _join_counters(self) -> None:
        """A counter's TYPE may leave out the `_total` that its samples or its HELP have."""
        for family in list(self._families.values()):
            if family.type != "counter" or family.name.endswith(_TOTAL):
                continue
            other = self._families.get(family.name + _TOTAL)
            one_is_empty = other is not None and None in (family.builder, other.builder)
            if other is not None and other.type is None and one_is_empty:
                family.join(other)
                del self._families[other.name]

    def _created_names(self) -> dict[str, str]:
        """What the times would be called at which counters began, and the counters' HELP."""
        counting = [f.metadata() for f in self._families.values() if f.type in _COUNTING]
        return {metadata.name + _CREATED: metadata.documentation for metadata in counting}

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
        counting = family.type in _COUNTING
        self._created = family.metadata().name + _CREATED if counting else ""

    def _take_sample(self, line: str) -> None:
        series, rest = self._series.known(line) or self._split(line)
        match = _VALUE.fullmatch(rest)
        if not match:
            raise GrammarError(f"no value: {line[:80]!r}")
        _, value = parse_number(match[1])
        if series.name not in self._allowed:
            if series.name == self._created:
                return
            self._begin_untyped(series.name)
        family = self._current
        assert family is not None
        name, text = series.name, series.text
        if family.type == "counter" and not name.endswith(_TOTAL):
            name += _TOTAL
            text = series_text(name, text.partition("{")[2].removesuffix("}"))
        elif family.type == "histogram":
            family.series.append(series)
        if text in self._seen:
            raise GrammarError(f"{text[:80]} a second time")
        self._seen.add(text)
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
        elif family.type is not None or (
            family.documentation is not None and not self._is_current_counters(family)
        ):
            raise GrammarError(f"the samples of {name} are not in one place")
        self._current = family
        self._allowed = {name}

    def _is_current_counters(self, family: _OpenFamily) -> bool:
        """Whether a HELP without samples so far is that of the counter whose TYPE came last."""
        current = self._current
        if current is None or current.type != "counter":
            return False
        return current.name + _TOTAL == family.name and family.builder is None


def _is_created(family: _OpenFamily, created: dict[str, str]) -> bool:
    """Whether it is what other clients write of a counter's begin: a gauge with the counter's HELP.

    A gauge of such a name that has words of its own, or none, is somebody's.
    """
    if family.name not in created or family.type not in (None, "gauge", "untyped"):
        return False
    if family.type is None and family.documentation is None:
        return True
    return bool(family.documentation) and family.documentation == created[family.name]


def _check_histogram(all_series: Sequence[Series], family: str) -> None:
    """That the buckets of each label set rise to `+Inf`.

    Raises:
        GrammarError: they do not.
    """
    last: dict[tuple[tuple[str, str], ...], float | None] = {}
    for series in all_series:
        bucket = series.name == f"{family}_bucket"
        group = group_of(series, family, "histogram")
        before = last.setdefault(group, None)
        if bucket:
            check_bound(series.labels.get("le"))
            last[group] = bound = float(series.labels["le"])
            if before is not None and bound <= before:
                raise GrammarError(f"buckets of {family} are out of order")
    if any(bound != math.inf for bound in last.values()):
        raise GrammarError(f"{family} has no bucket +Inf")
