"""OpenMetrics 1.0.0, parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from dynamometer.errors import ExpositionError
from dynamometer.exposition.builder import FamilyBuilder
from dynamometer.exposition.families import SUFFIXES, TYPES, Family, Metadata
from dynamometer.exposition.grammar import (
    BRACES,
    NAME,
    QUOTED,
    GrammarError,
    SeriesParser,
    parse_name,
    parse_number,
)
from dynamometer.exposition.openmetrics_rules import (
    ParsedSample,
    check_exemplar,
    check_histogram,
    check_sample,
    group_of,
    parse_seconds,
)
from dynamometer.exposition.unchanged import Unchanged

_HEADER: Final = re.compile(rf"# (HELP|TYPE|UNIT) ({QUOTED}|[^ ]+) (.*)", re.DOTALL)
_SAMPLE: Final = re.compile(
    rf"({NAME}(?:{BRACES})?|{BRACES}) ([^ {{}}]+)(?: ([^ #][^ ]*))?"
    rf"(?: # ({BRACES}) ([^ ]+)(?: ([^ ]+))?)?",
    re.ASCII,
)
_NATIVE_HISTOGRAM: Final = re.compile(rf"(?:{NAME}(?:{BRACES})?|{BRACES}) \{{.*\}}", re.ASCII)
_DOCUMENTATION_ESCAPE: Final = re.compile(r'\\[\\n"]')
_END: Final = "# EOF"
_MILLISECONDS: Final = 1000


class OpenMetricsParser:
    """Parses one page after the other, and is quick where series come again."""

    def __init__(self) -> None:
        self._unchanged = Unchanged()
        self._series = SeriesParser(strict=True)

    def parse(self, page: bytes) -> tuple[Family, ...]:
        """The families of a page, without `_created` series: the last page's objects where
        they are the same.

        Raises:
            ExpositionError: the page is not in the format; names the line.
        """
        self._series.begin_page()
        found = _Page(self._series)
        number = 0
        try:
            lines = page.split(b"\n")
            if lines[-1] == b"":
                lines.pop()
            for number, line in enumerate(lines, 1):  # noqa: B007  # for the error
                found.take(line.decode())
            return self._unchanged.keep(found.families())
        except (GrammarError, UnicodeDecodeError) as error:
            raise ExpositionError(f"line {number} of the OpenMetrics page: {error}") from None


@dataclass
class _OpenFamily:
    """A family whose lines are being read."""

    name: str
    type: str | None = None
    documentation: str | None = None
    unit: str | None = None
    samples: list[ParsedSample] = field(default_factory=list)
    builder: FamilyBuilder | None = None
    group: tuple[tuple[str, str], ...] | None = None
    groups: set[tuple[tuple[str, str], ...]] = field(default_factory=set)
    stamp: float | None = None
    stamped: set[str] = field(default_factory=set)

    def allowed(self) -> set[str]:
        """What its samples may be called."""
        return {self.name + suffix for suffix in SUFFIXES.get(self.type or "unknown", ("",))}

    def metadata(self) -> Metadata:
        return Metadata(
            self.name, self.type or "unknown", self.documentation or "", self.unit or ""
        )


class _Page:
    def __init__(self, series: SeriesParser) -> None:
        self._series = series
        self._done: list[Family] = []
        self._names: set[str] = set()
        self._current: _OpenFamily | None = None
        self._allowed: set[str] = set()
        self._ended = False

    def take(self, line: str) -> None:
        """One line."""
        if self._ended:
            raise GrammarError("a line behind # EOF")
        if line == _END:
            self._ended = True
        elif line.startswith("#"):
            self._take_header(line)
        elif line:
            self._take_sample(line)
        else:
            raise GrammarError("a blank line")

    def families(self) -> tuple[Family, ...]:
        """All families, in their order."""
        self._finish()
        if not self._ended:
            raise GrammarError("the page ends without # EOF")
        return tuple(self._done)

    def _take_header(self, line: str) -> None:
        match = _HEADER.fullmatch(line)
        if not match:
            raise GrammarError(f"no header: {line[:80]!r}")
        word, written, rest = match.groups()
        name = parse_name(written)
        family = self._current
        if family is None or family.name != name:
            family = self._begin(name)
        elif family.builder is not None:
            raise GrammarError(f"{word} of {name} after its samples")
        if word == "HELP":
            _once(family.documentation, word, name)
            family.documentation = _DOCUMENTATION_ESCAPE.sub(
                lambda found: "\n" if found[0] == r"\n" else found[0][1], rest
            )
        elif word == "UNIT":
            _once(family.unit, word, name)
            family.unit = rest
        else:
            _once(family.type, word, name)
            if rest not in TYPES:
                raise GrammarError(f"an unknown type of {name}: {rest!r}")
            family.type = rest
            self._allowed = family.allowed()

    def _take_sample(self, line: str) -> None:
        family = self._current
        match = _SAMPLE.fullmatch(line)
        if not match:
            if family and family.type == "histogram" and _NATIVE_HISTOGRAM.fullmatch(line):
                return  # OpenMetrics 2.0's, that 1.0.0 leaves out
            raise GrammarError(f"no sample: {line[:80]!r}")
        series = self._series.parse(match[1])
        if family is None or series.name not in self._allowed:
            family = self._begin(series.name)
            family.type = "unknown"
        value, value_text = parse_number(match[2])
        seconds = match[3] or ""
        sample = ParsedSample(series, value, parse_seconds(seconds) if seconds else None)
        check_sample(sample, family.name, family.type or "unknown")
        exemplar = ""
        if match[4]:
            exemplar = check_exemplar(
                self._series, match[4], match[5], match[6], family.type or "unknown", series.name
            )
        if self._follows(family, sample):
            family.samples.append(sample)
            milliseconds = "" if sample.seconds is None else str(_milliseconds(sample.seconds))
            self._builder(family).add(
                series.name,
                series.text,
                value_text,
                seconds=seconds,
                milliseconds=milliseconds,
                exemplar=exemplar,
            )

    def _follows(self, family: _OpenFamily, sample: ParsedSample) -> bool:
        """Whether a sample is new, and not one of the same time again."""
        group = group_of(sample.series, family.name, family.type or "unknown")
        if group == family.group:
            if (sample.seconds is None) != (family.stamp is None):
                raise GrammarError("a timestamp on some samples of a group only")
            if (
                sample.seconds is not None
                and family.stamp is not None
                and family.stamp > sample.seconds
                and family.type != "info"
            ):
                raise GrammarError("a timestamp before the one above it")
        else:
            if family.group is not None and group in family.groups:
                raise GrammarError("the samples of a label set are not in one place")
            family.stamped = set()
        new = sample.seconds != family.stamp or sample.series.text not in family.stamped
        family.stamped.add(sample.series.text)
        family.group, family.stamp = group, sample.seconds
        family.groups.add(group)
        return new

    def _builder(self, family: _OpenFamily) -> FamilyBuilder:
        if family.builder is None:
            family.builder = FamilyBuilder(family.metadata())
        return family.builder

    def _begin(self, name: str) -> _OpenFamily:
        self._finish()
        if name in self._names:
            raise GrammarError(f"the name {name} twice")
        self._current = _OpenFamily(name)
        self._allowed = {name}
        return self._current

    def _finish(self) -> None:
        family, self._current = self._current, None
        if family is None:
            return
        metadata = family.metadata()
        for name in sorted(metadata.reserved_names):
            if name in self._names:
                raise GrammarError(f"the name {name} twice")
        self._names |= metadata.reserved_names
        if metadata.unit:
            if not metadata.name.endswith(f"_{metadata.unit}"):
                raise GrammarError(f"{metadata.name} does not end with its unit {metadata.unit}")
            if metadata.type in ("info", "stateset"):
                raise GrammarError(f"a unit for {metadata.name}, {metadata.type}")
        if metadata.type in ("histogram", "gaugehistogram"):
            check_histogram(family.samples, metadata.name)
        self._done.append(self._builder(family).family())


def _once(before: str | None, word: str, name: str) -> None:
    if before is not None:
        raise GrammarError(f"a second {word} of {name}")


def _milliseconds(seconds: float) -> int:
    return int(seconds * _MILLISECONDS)
