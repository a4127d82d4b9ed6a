"""What OpenMetrics 1.0.0 says that values, labels and groups of samples must be.

As far as prometheus_client 0.26 checks it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dynamometer.exposition.grammar import GrammarError, Series, SeriesParser, parse_number

_MOST_CHARACTERS_OF_EXEMPLAR: Final = 128
_COUNTING: Final = ("_total", "_sum", "_count", "_bucket", "_gcount", "_gsum")
_NOT_NEGATIVE: Final = ("_total", "_sum", "_count", "_bucket", "_gcount")
_SECONDS: Final = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|[0-9]*\.?[0-9]+[eE][+-]?[0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ParsedSample:
    """A sample.

    Attributes:
        series: what is sampled.
        value: its value.
        seconds: its timestamp since the epoch, if it has one.
    """

    series: Series
    value: float
    seconds: float | None


def parse_seconds(text: str) -> float:
    """A timestamp.

    Raises:
        GrammarError: it is none.
    """
    if not _SECONDS.fullmatch(text) or math.isinf(float(text)):
        raise GrammarError(f"no timestamp: {text[:40]!r}")
    return float(text)


def check_exemplar(
    parser: SeriesParser, labels: str, value: str, seconds: str | None, kind: str, name: str
) -> str:
    """An exemplar in our own form.

    Args:
        parser: of labels.
        labels: with their braces.
        value: its value.
        seconds: its timestamp.
        kind: the family's type.
        name: the sample's name.

    Raises:
        GrammarError: it is none, or may not be here.
    """
    counter = kind == "counter" and name.endswith("_total")
    bucket = kind in ("histogram", "gaugehistogram") and name.endswith("_bucket")
    if not counter and not bucket:
        raise GrammarError("an exemplar on neither a counter nor a bucket")
    found = parser.parse(f"exemplar{labels}")
    if sum(len(k) + len(v) for k, v in found.labels.items()) > _MOST_CHARACTERS_OF_EXEMPLAR:
        raise GrammarError("an exemplar with labels of more than 128 characters")
    _, value_text = parse_number(value)
    if seconds is not None:
        parse_seconds(seconds)
    inside = found.text.partition("{")[2].removesuffix("}")
    return f"{{{inside}}} {value_text}{f' {seconds}' if seconds else ''}"


def group_of(series: Series, family: str, kind: str) -> tuple[tuple[str, str], ...]:
    """The label set that a sample belongs to, without what tells its samples apart."""
    if kind == "info":
        return ()
    without = None
    if kind == "summary" and series.name == family:
        without = "quantile"
    elif kind == "stateset":
        without = family
    elif kind in ("histogram", "gaugehistogram") and series.name == f"{family}_bucket":
        without = "le"
    return tuple(sorted(item for item in series.labels.items() if item[0] != without))


def check_sample(sample: ParsedSample, family: str, kind: str) -> None:
    """What one sample must be.

    Raises:
        GrammarError: it is not.
    """
    series, value = sample.series, sample.value
    suffix = series.name[len(family) :]
    if kind == "stateset" and (family not in series.labels or value not in (0, 1)):
        raise GrammarError(f"a stateset's sample without its label, or neither 0 nor 1: {value}")
    if suffix == "_bucket":
        check_bound(series.labels.get("le"))
    if suffix in ("_bucket", "_count", "_gcount") and not value.is_integer():
        raise GrammarError(f"a count that is no whole number: {value}")
    if kind == "summary" and not suffix:
        _check_quantile(series.labels.get("quantile"))
        if value < 0:
            raise GrammarError(f"a negative quantile: {value}")
    if kind == "info" and value != 1:
        raise GrammarError(f"an info that is not 1: {value}")
    if suffix in _COUNTING and math.isnan(value):
        raise GrammarError("a count that is NaN")
    if suffix in _NOT_NEGATIVE and value < 0:
        raise GrammarError(f"a negative count: {value}")


def check_histogram(samples: Iterable[ParsedSample], family: str) -> None:
    """That each label set's buckets rise to `+Inf` and agree with its count.

    Raises:
        GrammarError: they do not.
    """
    groups: dict[object, list[ParsedSample]] = {}
    order: list[object] = []
    last: object = None
    for sample in samples:
        key = (group_of(sample.series, family, "histogram"), sample.seconds)
        if key != last:
            order.append((len(order), key))
            last = key
        groups.setdefault(order[-1], []).append(sample)
    for group in groups.values():
        _check_group(group, family)


def _check_group(samples: list[ParsedSample], family: str) -> None:
    bound, value = None, 0.0
    negative = False
    others: dict[str, float] = {}
    for sample in samples:
        suffix = sample.series.name[len(family) :]
        if suffix != "_bucket":
            others[suffix] = sample.value
            continue
        next_bound = float(sample.series.labels["le"])
        negative = negative or next_bound < 0
        if bound is not None and next_bound <= bound:
            raise GrammarError(f"buckets of {family} are out of order")
        if sample.value < value:
            raise GrammarError(f"values of buckets of {family} fall")
        bound, value = next_bound, sample.value
    if bound != math.inf:
        raise GrammarError(f"{family} has no bucket +Inf")
    count = others.get("_count", others.get("_gcount"))
    if count is not None and count != value:
        raise GrammarError(f"the count of {family} is not its last bucket's")
    if (count is None) != ("_sum" not in others and "_gsum" not in others):
        raise GrammarError(f"{family} has one of count and sum only")
    if negative and "_sum" in others:
        raise GrammarError(f"{family} has negative buckets and a sum")
    if not negative and others.get("_gsum", 0) < 0:
        raise GrammarError(f"{family} has a negative sum of no negative buckets")


def check_bound(text: str | None) -> None:
    """That a bucket has an upper bound.

    Raises:
        GrammarError: it has none.
    """
    value = None if text is None else _float(text)
    if value is None or math.isnan(value) or (value == math.inf and text != "+Inf"):
        raise GrammarError(f"no bound of a bucket: {text!r}")


def _check_quantile(text: str | None) -> None:
    value = None if text is None else _float(text)
    if value is None or not 0 <= value <= 1:
        raise GrammarError(f"no quantile: {text!r}")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
