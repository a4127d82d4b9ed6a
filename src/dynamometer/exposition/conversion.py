"""Convert `Metric` objects of prometheus_client to families, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import prometheus_client.samples
from prometheus_client import Metric

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series, labels_text
from dynamometer.names import label_value

_MILLISECONDS: Final = 1000


class FamilyMetric(Metric):
    """A family as a `Metric` of prometheus_client, which creates its samples on first use.

    Attributes:
        family: the family.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        metadata = family.metadata
        super().__init__(metadata.name, metadata.documentation, metadata.type)
        self.unit = metadata.unit
        self._samples: list[prometheus_client.samples.Sample] | None = None

    @property
    def untouched(self) -> bool:
        """True if no attribute has changed since the creation, and the samples were never used."""
        metadata = self.family.metadata
        now = (self.name, self.documentation, self.type, self.unit)
        created = (metadata.name, metadata.documentation, metadata.type, metadata.unit)
        return self._samples is None and now == created

    @property
    def samples(self) -> list[prometheus_client.samples.Sample]:
        """The samples, without timestamps and exemplars."""
        if self._samples is None:
            self._samples = [
                prometheus_client.samples.Sample(
                    sample.series.name, dict(sample.series.labels), float(sample.value)
                )
                for sample in self.family.samples
            ]
        return self._samples

    @samples.setter
    def samples(self, samples: Sequence[prometheus_client.samples.Sample]) -> None:
        self._samples = list(samples)


def to_metric(family: Family) -> Metric:
    """Return a family as a `Metric` of prometheus_client."""
    return FamilyMetric(family)


def from_metric(metric: Metric, before: Metadata | None = None) -> Family:
    """Return a `Metric` of prometheus_client as a family, without its `_created` series.

    An unpaired surrogate in a label's value, which a page cannot contain, becomes `?`.

    Args:
        metric: the metric. If it is an untouched `FamilyMetric`, its family is returned.
        before: the metadata of the previous call, used again if they are equal to the new ones.

    Raises:
        UnicodeEncodeError: Without unpaired surrogates, two series would be the same, or a name
            has an unpaired surrogate.
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
            raise
        return _family(metadata, samples)


def _family(metadata: Metadata, samples: Iterable[prometheus_client.samples.Sample]) -> Family:
    family = Family.of_samples(
        metadata,
        # OpenMetrics 1.0.0 and the text format have no native histograms.
        [_sample(sample) for sample in samples if sample.native_histogram is None],
    )
    # Raise an error now, not when the page is rendered.
    "".join([f"{sample.series.text}{sample.exemplar}" for sample in family.samples]).encode()
    return family


def _sample(sample: prometheus_client.samples.Sample) -> Sample:
    stamp = sample.timestamp
    return Sample(
        Series.of(sample.name, sample.labels),
        format_number(float(sample.value)),
        "" if stamp is None else str(stamp),
        "" if stamp is None else str(int(float(stamp) * _MILLISECONDS)),
        _exemplar_text(sample.exemplar) if sample.exemplar else "",
    )


def _exemplar_text(exemplar: prometheus_client.samples.Exemplar) -> str:
    stamp = "" if exemplar.timestamp is None else f" {exemplar.timestamp}"
    value = format_number(float(exemplar.value))
    return f"{{{labels_text(exemplar.labels)}}} {value}{stamp}"


def _series_count(samples: Iterable[prometheus_client.samples.Sample]) -> int:
    return len({(sample.name, *sorted(sample.labels.items())) for sample in samples})


def _writable(sample: prometheus_client.samples.Sample) -> prometheus_client.samples.Sample:
    """Return a sample with `?` for each unpaired surrogate in its labels' values."""
    exemplar = sample.exemplar
    if exemplar:
        exemplar = exemplar._replace(labels=_writable_labels(exemplar.labels))
    return sample._replace(labels=_writable_labels(sample.labels), exemplar=exemplar)


def _writable_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: label_value(value) for name, value in labels.items()}
