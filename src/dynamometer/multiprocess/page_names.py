"""The names of a key as a page spells them.

A page uses the legacy character set, so that two keys may be the same series on a page: `a.b` and
`a_b`, a counter with and without `_total`, labels `x:y` and `x_y`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from dynamometer.exposition.series import label_name, metric_name
from dynamometer.multiprocess.faults import OmittedError, Reason
from dynamometer.multiprocess.file_format import Key

_TOTAL: Final = "_total"
_RESERVED: Final = "__name__"
# The endings of sample names behind the family's name; a counter's sample always ends in `_total`.
_SUFFIXES: Final = {
    "gauge": ("",),
    "summary": ("", "_count", "_sum"),
    "histogram": ("_bucket", "_count", "_sum"),
}


class PageNames(NamedTuple):
    """The names of a key on a page.

    Attributes:
        family: the family's name, a counter's without `_total`.
        sample: the sample's name.
        labels: the values of the labels, by name.
        unchanged: whether the key itself has the same names.
    """

    family: str
    sample: str
    labels: dict[str, str]
    unchanged: bool


def spell(key: Key, kind: str) -> PageNames:
    """Return a key's names in the legacy character set.

    Args:
        key: the key.
        kind: the type of the key's file.

    Raises:
        OmittedError: The key's sample does not belong to its family, or two of its labels have
            the same name on a page.
    """
    family, sample = _names(key.family, key.sample, kind)
    original = tuple(key.labels)
    names = _label_names(original)
    labels = key.labels if names == original else dict(zip(names, key.labels.values(), strict=True))
    if len(labels) < len(names):
        raise OmittedError(
            Reason.OVERLAP,
            f"several labels of {key.sample} have the same name: {', '.join(sorted(original))}",
        )
    if _RESERVED in labels:
        raise OmittedError(Reason.KEY, f"{key.sample} has a label {_RESERVED}")
    unchanged = labels is key.labels and family == key.family and sample == key.sample
    return PageNames(family, sample, labels, unchanged)


@lru_cache(4096)
def _label_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([label_name(name) for name in names])


@lru_cache(4096)
def _names(family: str, sample: str, kind: str) -> tuple[str, str]:
    """Return the names of a family and its sample.

    Raises:
        OmittedError: The sample does not belong to the family.
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
