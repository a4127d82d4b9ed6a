"""Bounds of label values: the number of those that clients choose, and the bytes of each.

A scanner or a fuzzer can give an engine thousands of values of a label such as the path of a
request. The first values keep their series; the series of all later values are added up in one
series with the value `other`. Only values that can be added up are: counters, histograms,
summaries, and gauges that are known to be sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

OTHER: Final = "other"
DEFAULT_MAX_VALUES: Final = 100
DEFAULT_MAX_BYTES: Final = 1024
_CUMULATIVE: Final = frozenset({"counter", "histogram", "summary"})


class LongValueError(ValueError):
    """A label value that is too long, in a series that cannot be added to another one."""


@dataclass(frozen=True, kw_only=True)
class ClientLabels:
    """The labels whose values come from an engine's clients.

    Attributes:
        prefixes: the prefixes of the families that have such labels.
        names: the names of the labels.
        summed_gauges: names of gauges with such labels whose series can be added up.
    """

    prefixes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    summed_gauges: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class LabelLimits:
    """The limits of label values.

    Attributes:
        max_values: the number of values of each client label that keep their series.
        max_bytes: the bytes of a label value in UTF-8.
    """

    max_values: int = DEFAULT_MAX_VALUES
    max_bytes: int = DEFAULT_MAX_BYTES


@dataclass(slots=True)
class LabelBounds:
    """The bounds of one engine's label values.

    All sources of an engine share one object, so that they keep the same values. A value that is
    kept once is kept from then on, and a later one never is, so that no total falls.

    Attributes:
        client: the labels whose values come from clients.
        limits: the limits.
    """

    client: ClientLabels
    limits: LabelLimits = LabelLimits()
    # The kept values of each client label. Several threads may add values: then a few more than
    # the limit may be kept, each for all sources.
    _kept: dict[str, set[str]] = field(default_factory=dict, init=False)

    def apply(self, family: str, kind: str, labels: Mapping[str, str]) -> Mapping[str, str]:
        """Return the labels, with `other` for each client value that does not keep its series.

        Args:
            family: the family's name.
            kind: the family's type.
            labels: the labels of a series.

        Raises:
            LongValueError: A value is too long, and its series cannot be added to another one.
        """
        client, folded = self.client, {}
        can_be_summed = kind in _CUMULATIVE or family in client.summed_gauges
        if can_be_summed and family.startswith(client.prefixes):
            folded = {
                label: OTHER
                for label in client.names
                if (value := labels.get(label)) and not self._admit(label, value)
            }
        for label, value in labels.items():
            if label not in folded and self.is_long(value):
                raise LongValueError(
                    f"label {label} of {family}: a value of more than {self.limits.max_bytes} "
                    f"bytes: {value[:40]!r}..."
                )
        return {**labels, **folded} if folded else labels

    def is_long(self, text: str) -> bool:
        """Return whether a text has more bytes than a label value may have."""
        most = self.limits.max_bytes
        return len(text) > most or (not text.isascii() and len(text.encode()) > most)

    def concerns(self, series: str) -> bool:
        """Return whether `apply` may change or refuse a series; fast, and True too often."""
        return self.is_long(series) or any(f'{name}="' in series for name in self.client.names)

    def _admit(self, label: str, value: str) -> bool:
        """Keep a value of a client label if the limits allow it; return whether it is kept."""
        kept = self._kept.setdefault(label, set())
        if value in kept:
            return True
        if len(kept) >= self.limits.max_values or value == OTHER or self.is_long(value):
            return False
        kept.add(value)
        return True
