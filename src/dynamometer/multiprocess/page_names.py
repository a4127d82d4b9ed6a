"""A key's names and labels as a page writes them.

Two keys may differ in their own characters and be the same series on a page: `a.b` and `a_b`,
a counter with and without `_total`, labels `x:y` and `x_y`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from dynamometer.exposition.series import label_name, metric_name
from dynamometer.multiprocess.faults import OmittedError, Reason
from dynamometer.multiprocess.file_format import Key

_TOTAL: Final = "_total"
_RESERVED: Final = "__name__"
# What a sample's name has after its family's; a counter's is written with `_total` in any case.
_SUFFIXES: Final = {
    "gauge": ("",),
    "summary": ("", "_count", "_sum"),
    "histogram": ("_bucket", "_count", "_sum"),
}


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
        OmittedError: the key's sample does not belong to its family, or two of its labels have
            one written name.
    """
    family, sample = _names(key.family, key.sample, kind)
    original = tuple(key.labels)
    names = _label_names(original)
    labels = key.labels if names == original else dict(zip(names, key.labels.values(), strict=True))
    if len(labels) < len(names):
        raise OmittedError(
            Reason.OVERLAP, f"labels of {key.sample} have one name: {', '.join(sorted(original))}"
        )
    if _RESERVED in labels:
        raise OmittedError(Reason.KEY, f"{key.sample} has a label {_RESERVED}")
    regular = labels is key.labels and family == key.family and sample == key.sample
    return Written(family, sample, labels, regular)


@lru_cache(4096)
def _label_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([label_name(name) for name in names])


@lru_cache(4096)
def _names(family: str, sample: str, kind: str) -> tuple[str, str]:
    """A family's and its sample's name.

    Raises:
        OmittedError: the sample does not belong to the family.
    """
    original = sample, family
    family, sample = metric_name(family), metric_name(sample)
    if kind == "counter":
        if sample == family:
            family = family.removesuffix(_TOTAL)
            return family, family + _TOTAL
        if sample == family + _TOTAL:
            return family, sample
    elif sample.startswith(family) and sample[len(family) :] in _SUFFIXES[kind]:
        return family, sample
    raise OmittedError(Reason.KEY, f"{original[0]} is not a sample of the {kind} {original[1]}")
