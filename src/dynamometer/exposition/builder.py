"""A family from its samples, one after the other, for both formats at once."""

from __future__ import annotations

from dynamometer.exposition.families import Family, Metadata, text_header

# Without a meaning in the text format: there they are gauges of their own, at the end.
_GAUGES_OF_THEIR_OWN = ("_gcount", "_gsum")


class FamilyBuilder:
    """Takes samples in their order; `_created` series are left out."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self._created = metadata.created_name
        self._names: set[str] = set()
        self._lines: list[str] = []
        self._openmetrics_lines: list[str] = []
        self._own_gauges: dict[str, list[str]] = {}
        self._differ = False

    def add(
        self,
        name: str,
        series: str,
        value: str,
        *,
        seconds: str = "",
        milliseconds: str = "",
        exemplar: str = "",
    ) -> None:
        """One sample.

        Args:
            name: its metric's name.
            series: the left part of its line, in our own form.
            value: its value as it is to be written.
            seconds: its timestamp as OpenMetrics has it; empty for none.
            milliseconds: its timestamp as the text format has it; empty for none.
            exemplar: labels, value and timestamp of its exemplar; empty for none.
        """
        metadata = self.metadata
        if name == self._created:
            return
        self._names.add(name)
        line = text_line = f"{series} {value}\n"
        if seconds or exemplar:
            self._differ = True
            stamp = f" {seconds}" if seconds else ""
            line = f"{series} {value}{stamp}{f' # {exemplar}' if exemplar else ''}\n"
            if milliseconds:
                text_line = f"{series} {value} {milliseconds}\n"
        self._openmetrics_lines.append(line)
        if metadata.type == "gaugehistogram" and name.endswith(_GAUGES_OF_THEIR_OWN):
            suffix = name[len(metadata.name) :]
            self._differ = True
            self._own_gauges.setdefault(suffix, []).append(text_line)
        else:
            self._lines.append(text_line)

    def family(self) -> Family:
        """The family of the samples so far."""
        chunks = ["".join(self._lines).encode()]
        for suffix, lines in sorted(self._own_gauges.items()):
            header = text_header(self.metadata.name + suffix, "gauge", self.metadata.documentation)
            chunks += [header, "".join(lines).encode()]
        other = ("".join(self._openmetrics_lines).encode(),) if self._differ else None
        return Family(self.metadata, frozenset(self._names), tuple(chunks), other)
