"""prometheus_client's families to ours, and back."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Metric
from prometheus_client.samples import Sample

from dynamometer.exposition.families import Family
from dynamometer.exposition.series import split_lines, split_series


class FamilyMetric(Metric):
    """A family as prometheus_client has it, whose samples are made when they are looked at.

    Attributes:
        family: the family, for those who can do with its bytes.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._samples: list[Sample] | None = None
        metadata = family.metadata
        super().__init__(metadata.name, metadata.documentation, metadata.type)
        self.unit = metadata.unit
        self._samples = None

    @property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # an attribute there
        """The samples."""
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
