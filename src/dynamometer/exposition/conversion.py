"""prometheus_client's families to ours, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import Metric
from prometheus_client.samples import Exemplar, Sample

from dynamometer.exposition.builder import FamilyBuilder
from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.series import labels_text, series_text, split_lines, split_series
from dynamometer.names import label_value

_MILLISECONDS: Final = 1000


class FamilyMetric(Metric):
    """A family as prometheus_client has it, whose samples are made when they are looked at.

    Attributes:
        family: the family, for those who can do with its bytes.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        metadata = family.metadata
        super().__init__(metadata.name, metadata.documentation, metadata.type)
        self.unit = metadata.unit
        self._samples: list[Sample] | None = None

    @property
    def untouched(self) -> bool:
        """Whether nobody can have changed it: its samples were never looked at, nor was it."""
        metadata = self.family.metadata
        now = (self.name, self.documentation, self.type, self.unit)
        made = (metadata.name, metadata.documentation, metadata.type, metadata.unit)
        return self._samples is None and now == made

    @property
    def samples(self) -> list[Sample]:
        """The samples, without timestamps and exemplars."""
        if self._samples is None:
            self._samples = to_samples(self.family.lines)
        return self._samples

    @samples.setter
    def samples(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)


def to_metric(family: Family) -> Metric:
    """A family as prometheus_client has it."""
    return FamilyMetric(family)


def to_samples(lines: bytes) -> list[Sample]:
    """The samples of sample lines in our own form, without timestamps and exemplars."""
    samples = []
    for series, rest in split_lines(lines):
        name, labels = split_series(series)
        samples.append(Sample(name, dict(labels), float(rest.split(" ", 1)[0])))
    return samples


def from_metric(metric: Metric, before: Metadata | None = None) -> Family:
    """A family of prometheus_client's as its bytes; those it has kept where it is one of ours.

    Without `_created` series, as all families of ours. Half characters in labels' values, which no
    page can hold, become `?`.

    Args:
        metric: the family.
        before: its metadata as they were; taken again where they still are so.
    """
    if isinstance(metric, FamilyMetric) and metric.untouched:
        return metric.family
    metadata = Metadata(metric.name, metric.type, metric.documentation, metric.unit)
    if before == metadata:
        metadata = before
    try:
        return _family(metadata, metric.samples)
    except UnicodeEncodeError:
        samples = [_writable(sample) for sample in metric.samples]
        if _series_count(samples) != _series_count(metric.samples):
            raise  # two series would be one
        return _family(metadata, samples)


def _family(metadata: Metadata, samples: Iterable[Sample]) -> Family:
    builder = FamilyBuilder(metadata)
    for sample in samples:
        if sample.native_histogram is not None:
            continue  # OpenMetrics 2.0's
        stamp = sample.timestamp
        builder.add(
            sample.name,
            series_text(sample.name, labels_text(sample.labels)),
            format_number(float(sample.value)),
            seconds="" if stamp is None else str(stamp),
            milliseconds="" if stamp is None else str(int(float(stamp) * _MILLISECONDS)),
            exemplar=_exemplar_text(sample.exemplar) if sample.exemplar else "",
        )
    return builder.family()


def _series_count(samples: Iterable[Sample]) -> int:
    return len({(sample.name, *sorted(sample.labels.items())) for sample in samples})


def _writable(sample: Sample) -> Sample:
    """A sample whose labels' values have `?` in the place of half characters."""
    exemplar = sample.exemplar
    if exemplar:
        exemplar = exemplar._replace(labels=_writable_labels(exemplar.labels))
    return sample._replace(labels=_writable_labels(sample.labels), exemplar=exemplar)


def _writable_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: label_value(value) for name, value in labels.items()}


def _exemplar_text(exemplar: Exemplar) -> str:
    stamp = "" if exemplar.timestamp is None else f" {exemplar.timestamp}"
    value = format_number(float(exemplar.value))
    return f"{{{labels_text(exemplar.labels)}}} {value}{stamp}"
