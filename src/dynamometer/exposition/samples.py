"""Samples: the one place where a sample line is split, and the one where it is rendered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dynamometer.exposition.series import Series


class Sample(NamedTuple):
    """One sample of a family.

    Attributes:
        series: the series.
        value: the value as it is written.
        seconds: the timestamp as OpenMetrics writes it; empty for none.
        milliseconds: the timestamp as the text format writes it; empty for none.
        exemplar: labels, value and timestamp of the exemplar; empty for none.
    """

    series: Series
    value: str
    seconds: str = ""
    milliseconds: str = ""
    exemplar: str = ""


def split_lines(lines: bytes) -> tuple[Sample, ...]:
    """Split sample lines in our own form, which have neither timestamps nor exemplars."""
    samples = []
    for line in lines.decode().split("\n"):
        if line:
            end = line.rfind("}") + 1 or line.find(" ")
            samples.append(Sample(Series(line[:end]), line[end + 1 :]))
    return tuple(samples)


def text_lines(samples: Iterable[Sample]) -> bytes:
    """Render samples in the text format 0.0.4."""
    return "".join(
        [
            f"{series.text} {value} {stamp}\n" if stamp else f"{series.text} {value}\n"
            for series, value, _, stamp, _ in samples
        ]
    ).encode()


def openmetrics_lines(samples: Iterable[Sample]) -> bytes:
    """Render samples in OpenMetrics 1.0.0."""
    return "".join([_openmetrics_line(*sample) for sample in samples]).encode()


def _openmetrics_line(
    series: Series, value: str, seconds: str, _milliseconds: str, exemplar: str
) -> str:
    stamp = f" {seconds}" if seconds else ""
    return f"{series.text} {value}{stamp}{f' # {exemplar}' if exemplar else ''}\n"
