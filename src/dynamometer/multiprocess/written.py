"""A key's names and labels as a page writes them.

Two keys may differ in their own characters and be the same series on a page: `a.b` and `a_b`,
a counter with and without `_total`, labels `x:y` and `x_y`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from dynamometer.exposition.series import label_name, metric_name
from dynamometer.multiprocess.entries import Key
from dynamometer.multiprocess.faults import LeftOutError, Reason

_TOTAL: Final = "_total"
_RESERVED: Final = "__name__"
# What a sample's name has after its family's; a counter's is written with `_total` in any case.
_SUFFIXES: Final = {
    "gauge": ("",),
    "summary": ("", "_count", "_sum"),
    "histogram": ("_bucket", "_count", "_sum"),
}
_metric_name = lru_cache(4096)(metric_name)
_label_name = lru_cache(4096)(label_name)


class Written(NamedTuple):
    """A key as a page writes it.

    Attributes:
        family: its name, a counter's without `_total`.
        sample: the sample's name.
        labels: by their written names.
        regular: whether the key itself has the same names and labels.
    """

    family: str
    sample: str
    labels: dict[str, str]
    regular: bool


def written(key: Key, kind: str) -> Written:
    """Write a key's names in the legacy character set.

    Args:
        key: the key.
        kind: the type of its file.

    Raises:
        LeftOutError: the key's sample does not belong to its family, or two of its labels have
            one written name.
    """
    labels = {_label_name(name): value for name, value in key.labels.items()}
    if len(labels) < len(key.labels):
        names = ", ".join(sorted(key.labels))
        raise LeftOutError(Reason.OVERLAP, f"labels of {key.sample} have one name: {names}")
    if _RESERVED in labels:
        raise LeftOutError(Reason.KEY, f"{key.sample} has a label {_RESERVED}")
    family, sample = _family_and_sample(key, kind)
    regular = (family, sample, labels) == (key.family, key.sample, key.labels)
    return Written(family, sample, labels, regular)


def _family_and_sample(key: Key, kind: str) -> tuple[str, str]:
    family, sample = _metric_name(key.family), _metric_name(key.sample)
    if kind == "counter":
        if sample == family:
            family = family.removesuffix(_TOTAL)
            return family, family + _TOTAL
        if sample == family + _TOTAL:
            return family, sample
    elif sample.startswith(family) and sample[len(family) :] in _SUFFIXES[kind]:
        return family, sample
    raise LeftOutError(Reason.KEY, f"{key.sample} is not a sample of the {kind} {key.family}")
