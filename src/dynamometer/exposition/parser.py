"""Parse pages of the text format 0.0.4 and of OpenMetrics to families.

One parser reads both formats and accepts everything that Prometheus accepts. A line that cannot be
parsed is dropped and counted. The first TYPE, HELP and UNIT of a name apply, and a sample belongs
to the last TYPE that allows the sample's name. `merging` and `untyped` resolve conflicts between
families.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dynamometer.errors import ExpositionError
from dynamometer.exposition.families import SUFFIXES, TYPES, Family, Metadata
from dynamometer.exposition.grammar import (
    BRACES,
    QUOTED,
    GrammarError,
    SeriesParser,
    exemplar_text,
    openmetrics_timestamp,
    parse_name,
    parse_number,
    text_timestamp,
)
from dynamometer.exposition.reuse import UnchangedFamilies
from dynamometer.exposition.samples import Sample

_OPENMETRICS: Final = "application/openmetrics-text"
_HEADER: Final = re.compile(
    rf"#[ \t]+(HELP|TYPE|UNIT)(?:[ \t]+({QUOTED}|[^ \t]+)(?:[ \t]+(.*))?)?", re.DOTALL
)
# The text after the series: value, timestamp, exemplar.
_REST: Final = re.compile(
    r"[ \t]*([^ \t{}#]+)(?:[ \t]+([^ \t{}#]+))?"
    rf"(?:[ \t]+#[ \t]+({BRACES})[ \t]*([^ \t]+)(?:[ \t]+([^ \t]+))?)?",
    re.ASCII,
)
_END: Final = re.compile(r"#[ \t]+EOF")
_TYPES: Final = {"untyped": "unknown", **{name: name for name in TYPES}}
_ESCAPES: Final = {r"\n": "\n", r"\\": "\\", r"\"": '"'}
_TEXT_ESCAPE: Final = re.compile(r"\\[\\n]")
_OPENMETRICS_ESCAPE: Final = re.compile(r'\\[\\n"]')
_TOTAL: Final = "_total"
_INFO: Final = "_info"
_TYPE_SUFFIXES: Final = {"counter": _TOTAL, "info": _INFO}
_WITHOUT_UNIT: Final = ("info", "stateset")
_EXEMPLARS: Final = {"counter": _TOTAL, "histogram": "_bucket", "gaugehistogram": "_bucket"}
# The number of lines between two readings of the clock.
_LINES_BETWEEN: Final = 500
# September 2001: a smaller value is not the time at which a counter was created.
_EARLIEST_CREATED: Final = 1e9


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content of a page.

    Attributes:
        families: the families, without `_created` series.
        dropped: the number of lines that could not be parsed.
        fault: the number of the first such line and the reason; empty if no line was dropped.
    """

    families: tuple[Family, ...]
    dropped: int = 0
    fault: str = ""


class Parser:
    """Parses the pages of one source; a series of the last page is parsed only once."""

    def __init__(self) -> None:
        self._unchanged = UnchangedFamilies()
        self._series = SeriesParser()

    def parse(self, page: bytes, content_type: str = "", *, until: float = math.inf) -> Parsed:
        """Parse a page; unchanged families are the objects of the last page.

        Args:
            page: the whole page.
            content_type: the response's Content-Type. As in Prometheus, OpenMetrics' own type
                selects OpenMetrics, and any other type the text format.
            until: the time of the monotonic clock after which the parser stops.

        Raises:
            TimeoutError: The page is so large that it cannot be parsed before `until`. The series
                that were parsed are known when the next page is parsed.
            ExpositionError: The page cannot be used: every sample line is invalid, the page is
                HTML, or an OpenMetrics page does not end with `# EOF` and is incomplete.
        """
        if page.lstrip()[:1] == b"<":
            raise ExpositionError("the page is HTML or XML, not metrics")
        openmetrics = content_type.partition(";")[0].strip().lower() == _OPENMETRICS
        found = _Page(self._series, openmetrics=openmetrics)
        self._series.begin_page()
        for number, line in enumerate(page.split(b"\n")):
            if number % _LINES_BETWEEN == 0 and time.monotonic() > until:
                raise TimeoutError("the page cannot be parsed in time")
            found.add_line(line)
        found.check()
        families = self._unchanged.reuse(found.families())
        return Parsed(families, found.dropped, found.fault)


def parse(page: bytes, content_type: str = "") -> Parsed:
    """Parse one page; see `Parser.parse`. For several pages of one source, use a `Parser`."""
    return Parser().parse(page, content_type)


@dataclass(slots=True, eq=False)
class _FamilyBuilder:
    """A family whose samples are still being parsed."""

    metadata: Metadata
    samples: list[Sample] = field(default_factory=list)


class _Page:
    """A page that is parsed line by line."""

    def __init__(self, series: SeriesParser, *, openmetrics: bool) -> None:
        self.dropped = 0
        self.fault = ""
        self._series = series
        self._openmetrics = openmetrics
        self._timestamp = openmetrics_timestamp if openmetrics else text_timestamp
        self._line_number = 0
        self._sample_count = 0
        self._sample_fault = ""
        self._ended = False
        self._documentation: dict[str, str] = {}
        self._units: dict[str, str] = {}
        self._types: dict[str, str] = {}
        self._families: dict[Metadata, _FamilyBuilder] = {}
        self._declared: set[Metadata] = set()
        self._owners: dict[str, _FamilyBuilder] = {}  # the family of each sample name

    def add_line(self, line: bytes) -> None:
        """Parse one line; a line that cannot be parsed is dropped and counted."""
        self._line_number += 1
        try:
            text = line.decode().strip(" \t\r")
            if not text:
                return
            if self._ended:
                raise GrammarError("a line after # EOF")
            if text.startswith("#"):
                self._add_comment(text)
            else:
                self._add_sample(text)
                self._sample_count += 1
        except UnicodeDecodeError as error:
            self._drop(line, f"not UTF-8: {error.object[error.start : error.end]!r}")
        except GrammarError as error:
            self._drop(line, str(error))

    def _drop(self, line: bytes, reason: str) -> None:
        page = "OpenMetrics" if self._openmetrics else "text"
        fault = f"line {self._line_number} of the {page} page: {reason}"
        self.dropped += 1
        self.fault = self.fault or fault
        if not line.lstrip().startswith(b"#"):
            self._sample_fault = self._sample_fault or fault

    def check(self) -> None:
        """Raise an error if the page as a whole cannot be used.

        Raises:
            ExpositionError: See `Parser.parse`.
        """
        if self._sample_fault and not self._sample_count:
            raise ExpositionError(self._sample_fault)
        if self._openmetrics and not self._ended:
            raise ExpositionError("the OpenMetrics page does not end with # EOF: it is incomplete")

    def families(self) -> Sequence[Family]:
        """Return the families in the order of their first line, each name and type once."""
        families = [
            (declared, Family.of_samples(self._described(declared), found.samples))
            for declared, found in self._families.items()
        ]
        created = {
            (family.metadata.created_name, family.metadata.documentation) for _, family in families
        }
        filled: set[str] = set()
        for _, family in families:
            if family.sample_names:
                filled |= family.sample_names | family.metadata.names
        return [
            family
            for metadata, family in families
            if not _is_created(family, created)
            and (
                family.sample_names
                or (metadata in self._declared and filled.isdisjoint(metadata.reserved_names))
            )
        ]

    def _described(self, metadata: Metadata) -> Metadata:
        """Return the metadata with HELP and UNIT, which may be under either name of the family."""
        documentation = unit = None
        for name in dict.fromkeys((metadata.text_name, metadata.name, metadata.sample_name)):
            if self._types.get(name, metadata.type) != metadata.type:
                continue
            if documentation is None:
                documentation = self._documentation.get(name)
            if unit is None:
                unit = self._units.get(name)
        if metadata.type in _WITHOUT_UNIT or not metadata.name.endswith(f"_{unit}"):
            unit = None
        return replace(metadata, documentation=documentation or "", unit=unit or "")

    def _add_comment(self, line: str) -> None:
        match = _HEADER.fullmatch(line)
        if match is None:
            self._ended = self._openmetrics and _END.fullmatch(line) is not None
            return
        word, written, rest = match.groups(default="")
        if word == "UNIT" and not self._openmetrics:
            return
        if not written:
            raise GrammarError(f"{word} without a name")
        name = parse_name(written)
        if word == "TYPE":
            if rest not in _TYPES:
                raise GrammarError(f"{rest[:40]!r} is not a type: {name}")
            self._declare(name, _TYPES[rest])
        elif word == "UNIT":
            if rest and not name.removesuffix(_TOTAL).endswith(f"_{rest}"):
                raise GrammarError(f"the name {name} does not end with its unit {rest[:40]!r}")
            self._units.setdefault(name, rest)
        elif name not in self._documentation:
            escape = _OPENMETRICS_ESCAPE if self._openmetrics else _TEXT_ESCAPE
            self._documentation[name] = escape.sub(lambda found: _ESCAPES[found[0]], rest)

    def _declare(self, name: str, kind: str) -> None:
        """Assign the following samples with one of the family's names to the family."""
        kind = self._types.setdefault(name, kind)
        suffix = _TYPE_SUFFIXES.get(kind, "")
        base = name.removesuffix(suffix)
        if not base:
            base, kind = name, "unknown"  # a suffix alone is not a counter's name
        metadata = Metadata(base, kind)
        names = [base + one for one in SUFFIXES.get(kind, ("",))]
        if kind == "counter" and name == base:
            bare = replace(metadata, bare=True)
            self._owners[name] = self._family(bare)
            self._declared.add(metadata if self._openmetrics else bare)
        else:
            self._declared.add(metadata)
        self._owners.update(dict.fromkeys(names, self._family(metadata)))

    def _declare_untyped(self, name: str) -> _FamilyBuilder:
        """Return the family of samples without a TYPE."""
        self._types.setdefault(name, "unknown")
        self._owners[name] = family = self._family(Metadata(name, "unknown"))
        return family

    def _family(self, metadata: Metadata) -> _FamilyBuilder:
        if metadata not in self._families:
            self._families[metadata] = _FamilyBuilder(metadata)
        return self._families[metadata]

    def _add_sample(self, line: str) -> None:
        series, rest = self._series.split(line)
        match = _REST.fullmatch(rest)
        if match is None:
            raise GrammarError(f"not a sample: {line[:80]!r}")
        value = parse_number(match[1])
        seconds, milliseconds = self._timestamp(match[2]) if match[2] else ("", "")
        exemplar = exemplar_text(*match.group(3, 4, 5)) if match[3] else ""
        name = series.name
        family = self._owners.get(name) or self._declare_untyped(name)
        if name == family.metadata.created_name and not self._is_creation_time(value):
            family = self._declare_untyped(name)
        metadata = family.metadata
        if metadata.bare and name == metadata.name:
            series = series.renamed(metadata.sample_name)
        if exemplar and not series.name.endswith(_EXEMPLARS.get(metadata.type, " ")):
            exemplar = ""  # OpenMetrics allows exemplars only at counters and buckets
        family.samples.append(Sample(series, value, seconds, milliseconds, exemplar))

    def _is_creation_time(self, value: str) -> bool:
        """Return whether the value of a `_created` sample can be a creation time."""
        return self._openmetrics or float(value) >= _EARLIEST_CREATED


def _is_created(family: Family, created: set[tuple[str, str]]) -> bool:
    """Return whether another client wrote the family as the creation times of a counter.

    Such a family is a gauge with the counter's HELP and Unix times. A gauge of such a name with
    another HELP or value is shown.
    """
    metadata = family.metadata
    return (
        metadata.type in ("gauge", "unknown")
        and (metadata.name, metadata.documentation) in created
        and all(float(sample.value) >= _EARLIEST_CREATED for sample in family.samples)
    )
