"""A metric family as it stands on a page.

The text format 0.0.4 and OpenMetrics 1.0.0 differ in a family's header and hardly ever in
its sample lines, so a family is its metadata and the lines that both formats share. It is
a value: a source that has nothing new hands out the same object again, and whoever joined
it keeps what he made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from dynamometer.exposition.series import metric_name

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
# What a family's samples may be called: its name and one of these (OpenMetrics 1.0.0).
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


@dataclass(frozen=True)
class Metadata:
    """The properties of a family apart from its samples.

    Attributes:
        name: as OpenMetrics and prometheus_client have it: a counter's without `_total`.
        type: one of `TYPES`.
        documentation: the help text, not escaped.
        unit: OpenMetrics' unit; empty for none.
        bare: whether the text format writes a counter as `name`, without `_total`, because the
            counter's own page does. OpenMetrics, and `Family.chunks`, have `_total` always.
    """

    name: str
    type: str
    documentation: str = ""
    unit: str = ""
    bare: bool = False

    @cached_property
    def sample_name(self) -> str:
        """The name with the suffix of its type: a counter's with `_total`."""
        return self.name + _SAMPLE_SUFFIXES.get(self.type, "")

    @cached_property
    def text_name(self) -> str:
        """The name that the text format writes: a counter's with `_total`, if it is not bare."""
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
        """What OpenMetrics calls the time at which it began to count; empty where it has none."""
        return f"{self.name}_created" if "_created" in SUFFIXES.get(self.type, ()) else ""

    @cached_property
    def text_header(self) -> bytes:
        """The `# HELP` and `# TYPE` lines of the text format 0.0.4."""
        return text_header(
            self.text_name, _TEXT_TYPES.get(self.type, self.type), self.documentation
        )

    @cached_property
    def openmetrics_header(self) -> bytes:
        """The `# HELP`, `# TYPE` and `# UNIT` lines of OpenMetrics 1.0.0."""
        name = metric_name(self.name)
        documentation = _escape_documentation(self.documentation).replace('"', r"\"")
        unit = f"# UNIT {name} {self.unit}\n" if self.unit else ""
        return f"# HELP {name} {documentation}\n# TYPE {name} {self.type}\n{unit}".encode()


def text_header(name: str, text_type: str, documentation: str) -> bytes:
    """The `# HELP` and `# TYPE` lines of the text format for a name as it has it."""
    name = metric_name(name)
    return (
        f"# HELP {name} {_escape_documentation(documentation)}\n# TYPE {name} {text_type}\n"
    ).encode()


def _escape_documentation(documentation: str) -> str:
    return documentation.replace("\\", r"\\").replace("\n", r"\n")


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One family with its samples; equal only to itself.

    Attributes:
        metadata: its name, type and help text.
        sample_names: the names of its samples.
        chunks: its sample lines, in our own form (`series`), in one piece or, so that a
            change in a large family costs little, in several.
        openmetrics_chunks: the same for OpenMetrics where the bytes differ (timestamps,
            exemplars, gauge histograms).
        in_text: whether text pages show the family.
        in_openmetrics: whether OpenMetrics pages show the family.
    """

    metadata: Metadata
    sample_names: frozenset[str]
    chunks: tuple[bytes, ...]
    openmetrics_chunks: tuple[bytes, ...] | None = None
    in_text: bool = True
    in_openmetrics: bool = True

    @property
    def name(self) -> str:
        """The family's name; a counter's without `_total`."""
        return self.metadata.name

    @property
    def lines(self) -> bytes:
        """The sample lines; a bare counter's with `_total`."""
        return b"".join(self.chunks)

    @property
    def text_chunks(self) -> tuple[bytes, ...]:
        """The sample lines as the text format writes them."""
        if not self.metadata.bare:
            return self.chunks
        before, after = f"\n{self.metadata.sample_name}", f"\n{self.metadata.text_name}"
        return tuple(
            (b"\n" + chunk).replace(before.encode(), after.encode())[1:] for chunk in self.chunks
        )
