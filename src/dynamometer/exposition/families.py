"""A metric family as it stands on a page.

The text format 0.0.4 and OpenMetrics 1.0.0 differ in a family's header and hardly ever in
its sample lines, so a family is its metadata and the lines that both formats share. It is
a value: a source that has nothing new hands out the same object again, and whoever joined
it keeps what he made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
_TEXT_TYPES: Final = {
    "info": "gauge",
    "stateset": "gauge",
    "gaugehistogram": "histogram",
    "unknown": "untyped",
}
_TEXT_SUFFIXES: Final = {"counter": "_total", "info": "_info"}


@dataclass(frozen=True)
class Metadata:
    """What a family is, apart from its samples.

    Attributes:
        name: as OpenMetrics and prometheus_client have it: a counter's without `_total`.
        type: one of `TYPES`.
        documentation: the help text, not escaped.
        unit: OpenMetrics' unit, empty for none.
    """

    name: str
    type: str
    documentation: str = ""
    unit: str = ""

    @cached_property
    def text_name(self) -> str:
        """The name as the text format has it: a counter's with `_total`."""
        return self.name + _TEXT_SUFFIXES.get(self.type, "")

    @cached_property
    def names(self) -> frozenset[str]:
        """What the family is called, in either format."""
        return frozenset({self.name, self.text_name})

    @cached_property
    def reserved_names(self) -> frozenset[str]:
        """Every name that no other family of an OpenMetrics page may have."""
        return frozenset({self.name, *(self.name + s for s in SUFFIXES.get(self.type, ()))})

    @cached_property
    def text_names(self) -> frozenset[str]:
        """Every name that no other family of a text page may have."""
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
        openmetrics_chunks: the same for OpenMetrics where they are not the same bytes
            (timestamps, exemplars, gauge histograms); none where the family has no place
            there, because another one has its name.
    """

    metadata: Metadata
    sample_names: frozenset[str]
    chunks: tuple[bytes, ...]
    openmetrics_chunks: tuple[bytes, ...] | None = field(default=None)

    @property
    def name(self) -> str:
        """The family's name; a counter's without `_total`."""
        return self.metadata.name

    @property
    def lines(self) -> bytes:
        """The sample lines of the text format."""
        return b"".join(self.chunks)
