"""A metric family: the value that sources return and pages are rendered from.

A family has its samples, its sample lines, or both: each is made from the other on first use. The
reader of files makes lines, which both formats share; parsers and transformations make samples,
whose timestamps and exemplars the formats write differently. A source without changes returns the
same objects again, so that results computed from a family can be reused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from dynamometer.exposition.samples import Sample, openmetrics_lines, split_lines, text_lines
from dynamometer.exposition.series import Series, labels_text, metric_name

TYPES: Final = frozenset(
    {
        "counter",
        "gauge",
        "summary",
        "histogram",
        "gaugehistogram",
        "unknown",
        "info",
        "stateset",
    }
)
# The endings of sample names, after the name of the family (OpenMetrics 1.0.0).
SUFFIXES: Final = {
    "counter": ("_total", "_created"),
    "summary": ("", "_count", "_sum", "_created"),
    "histogram": ("_count", "_sum", "_bucket", "_created"),
    "gaugehistogram": ("_gcount", "_gsum", "_bucket"),
    "info": ("_info",),
}
# The upper bound of a histogram's bucket.
BUCKET_LABEL: Final = "le"
# The label that distinguishes the samples of one histogram or summary, by the family's type.
INNER_LABELS: Final = {
    "histogram": BUCKET_LABEL,
    "gaugehistogram": BUCKET_LABEL,
    "summary": "quantile",
}
_TEXT_TYPES: Final = {
    "info": "gauge",
    "stateset": "gauge",
    "gaugehistogram": "histogram",
    "unknown": "untyped",
}
_SAMPLE_SUFFIXES: Final = {"counter": "_total", "info": "_info"}
# The text format does not have these samples of a gauge histogram: they are separate gauges there.
_GAUGE_SUFFIXES: Final = ("_gcount", "_gsum")


@dataclass(frozen=True)
class Metadata:
    """The properties of a family apart from its samples.

    Attributes:
        name: the name in OpenMetrics and prometheus_client, a counter's without `_total`.
            Characters outside the legacy character set become `_`, as in the samples' names.
        type: one of `TYPES`.
        documentation: the help text, not escaped.
        unit: OpenMetrics' unit; empty for none.
        bare: True for a counter whose source writes its name without `_total`. The text format
            does the same; OpenMetrics, and the samples, always have `_total`.
    """

    name: str
    type: str
    documentation: str = ""
    unit: str = ""
    bare: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", metric_name(self.name))

    @cached_property
    def sample_name(self) -> str:
        """The name with the suffix of the type: a counter's with `_total`."""
        return self.name + _SAMPLE_SUFFIXES.get(self.type, "")

    @cached_property
    def text_name(self) -> str:
        """The name in the text format: a counter's with `_total`, unless the counter is bare."""
        return self.name if self.bare else self.sample_name

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that the family has in either format."""
        return frozenset({self.name, self.text_name})

    @cached_property
    def reserved_names(self) -> frozenset[str]:
        """The names that no other family of an OpenMetrics page may have."""
        return frozenset({self.name, *(self.name + s for s in SUFFIXES.get(self.type, ()))})

    @cached_property
    def text_names(self) -> frozenset[str]:
        """The names that no other family of a text page may have."""
        if self.bare:
            return frozenset({self.name})
        return self.reserved_names - {self.name, self.created_name} | {self.text_name}

    @cached_property
    def created_name(self) -> str:
        """The name of OpenMetrics' creation time; empty for a type without one."""
        return f"{self.name}_created" if "_created" in SUFFIXES.get(self.type, ()) else ""

    @cached_property
    def text_header(self) -> bytes:
        """The `# HELP` and `# TYPE` lines of the text format 0.0.4."""
        text_type = _TEXT_TYPES.get(self.type, self.type)
        return _text_header(self.text_name, text_type, self.documentation)

    @cached_property
    def openmetrics_header(self) -> bytes:
        """The `# HELP`, `# TYPE` and `# UNIT` lines of OpenMetrics 1.0.0."""
        name = self.name
        documentation = _escape_documentation(self.documentation).replace('"', r"\"")
        unit = f"# UNIT {name} {self.unit}\n" if self.unit else ""
        return f"# HELP {name} {documentation}\n# TYPE {name} {self.type}\n{unit}".encode()

    def label_set(self, series: Series) -> str:
        """Return a text that is the same for all samples of one counter, histogram or summary.

        It is the text of the labels without `le` or `quantile`; of other types, the series' text.
        """
        inner = INNER_LABELS.get(self.type)
        if inner is None:
            return series.text
        return labels_text({name: value for name, value in series.labels.items() if name != inner})


def _text_header(name: str, text_type: str, documentation: str) -> bytes:
    documentation = _escape_documentation(documentation)
    return f"# HELP {name} {documentation}\n# TYPE {name} {text_type}\n".encode()


def _escape_documentation(documentation: str) -> str:
    return documentation.replace("\\", r"\\").replace("\n", r"\n")


class Family:
    """One family with its samples; immutable, and compared by identity.

    Attributes:
        metadata: the name, type and help text.
        sample_names: the names of the samples.
    """

    __slots__ = ("_lines", "_openmetrics_lines", "_samples", "metadata", "sample_names")

    def __init__(
        self, metadata: Metadata, sample_names: frozenset[str], chunks: tuple[bytes, ...]
    ) -> None:
        """Make a family from its sample lines.

        Args:
            metadata: the name, type and help text; neither a bare counter nor a gauge histogram,
                whose lines differ between the formats.
            sample_names: the names of the samples.
            chunks: the sample lines in our own form (`series`) without timestamps, in one piece,
                or in several, so that a change in a large family is cheap.
        """
        self.metadata = metadata
        self.sample_names = sample_names
        # Any thread may set a missing value; two threads set equal values.
        self._samples: tuple[Sample, ...] | None = None
        self._lines: tuple[bytes, ...] | None = chunks
        self._openmetrics_lines: tuple[bytes, ...] | None = chunks

    @classmethod
    def of_samples(cls, metadata: Metadata, samples: Iterable[Sample]) -> Family:
        """Make a family from its samples, without `_created` samples."""
        samples = tuple(samples)
        names = frozenset([sample.series.name for sample in samples])
        if metadata.created_name in names:
            names -= {metadata.created_name}
            samples = tuple([sample for sample in samples if sample.series.name in names])
        family = cls(metadata, names, ())
        if samples:
            family._samples = samples
            family._lines = family._openmetrics_lines = None
        return family

    @property
    def name(self) -> str:
        """The family's name; a counter's without `_total`."""
        return self.metadata.name

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples; split from the lines on first use."""
        if self._samples is None:
            self._samples = split_lines(b"".join(self.chunks))
        return self._samples

    @property
    def text_samples(self) -> Sequence[Sample]:
        """The samples with their names in the text format, which differ for a bare counter."""
        metadata = self.metadata
        if not metadata.bare:
            return self.samples
        return [
            sample._replace(series=sample.series.renamed(metadata.text_name))
            if sample.series.name == metadata.sample_name
            else sample
            for sample in self.samples
        ]

    @property
    def lines(self) -> bytes:
        """The sample lines in the text format 0.0.4."""
        return b"".join(self.chunks)

    @property
    def chunks(self) -> tuple[bytes, ...]:
        """The sample lines in the text format 0.0.4, in pieces; rendered on first use."""
        if self._lines is None:
            self._lines = tuple(self._text_chunks())
        return self._lines

    @property
    def openmetrics_chunks(self) -> tuple[bytes, ...]:
        """The sample lines in OpenMetrics 1.0.0, in pieces; rendered on first use."""
        if self._openmetrics_lines is None:
            samples = self.samples
            plain = not self.metadata.bare and self.metadata.type != "gaugehistogram"
            if plain and not any(sample.seconds or sample.exemplar for sample in samples):
                self._openmetrics_lines = self.chunks
            else:
                self._openmetrics_lines = (openmetrics_lines(samples),)
        return self._openmetrics_lines

    def render_lines(self) -> None:
        """Render the sample lines of both formats now, not when the first page is rendered."""
        _ = self.chunks, self.openmetrics_chunks

    def _text_chunks(self) -> Iterator[bytes]:
        """Render the samples; `_gcount` and `_gsum` of a gauge histogram come last, as gauges."""
        if self.metadata.type != "gaugehistogram":
            yield text_lines(self.text_samples)
            return
        gauges = sorted(name for name in self.sample_names if name.endswith(_GAUGE_SUFFIXES))
        yield text_lines([one for one in self.samples if one.series.name not in gauges])
        for name in gauges:
            yield _text_header(name, "gauge", self.metadata.documentation)
            yield text_lines([one for one in self.samples if one.series.name == name])

    def looks_like(self, other: Family) -> bool:
        """Return whether another family looks the same on every page."""
        return self.metadata == other.metadata and self.samples == other.samples
