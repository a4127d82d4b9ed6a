"""Counters that go on where their process begins anew, when all that is known is its page.

A process that restarts counts from nothing. Its totals are what its page said last, added to
what the page says now. What was counted between the last page and the end is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dynamometer.exposition.cumulative import (
    continued,
    cumulative_part,
    is_cumulative,
    label_set,
    label_sets,
    may_fall,
    values_of,
    without_lines,
)
from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.unchanged import Unchanged


@dataclass(slots=True)
class _Counted:
    """A family with cumulative samples.

    Attributes:
        page: as it was last on the page; without samples where it has not come back.
        read: the values of `page`, by series.
        values: of the process of now, by series; the last that was a finite number.
        offsets: what the processes before it have left, by series.
        shown: what was made of `page` and `offsets`.
    """

    page: Family
    read: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    shown: Family | None = None


class Totals:
    """Keeps the totals of one process' page over the restarts of the process.

    Counters, histograms and summaries' counts and sums go on; everything else is the page's.

    A restart is told by the caller, or by the page: a cumulative series other than a sum has a
    smaller value than before, or is gone. One such sign means that all have begun anew.

    A label set (the whole histogram or summary of its labels) that has not come back stays, at
    its total, behind the others. One that comes back with other series, a histogram with other
    bounds, begins anew: what is known of the old ones says nothing about the new ones. So does a
    family that comes back with another type. A value that is not finite is shown, and the last
    finite one counts.
    """

    def __init__(self) -> None:
        self._given: tuple[Family, ...] = ()
        self._shown: tuple[Family, ...] = ()
        self._counted: dict[tuple[str, str], _Counted] = {}
        self._continues = False
        self._unchanged = Unchanged()
        self._unchanged_kept = Unchanged()

    def update(self, families: Sequence[Family], *, restarted: bool = False) -> tuple[Family, ...]:
        """The families as on the page just now, continued: the same objects where nothing changed.

        Before the first restart they are the given ones.

        Args:
            families: of the whole page, each name and type once, as parsers give them.
            restarted: the page is of another process than at the last update.
        """
        given = tuple(families)
        if given == self._given and not restarted:
            return self._shown  # families are equal to themselves only
        self._given = given
        values = {
            (family.metadata.name, family.metadata.type): self._read(family)
            for family in given
            if is_cumulative(family.metadata)
        }
        if restarted or self._begun_anew(values):
            self._begin_anew()
        for family in given:
            self._see(family, values.get((family.metadata.name, family.metadata.type)))
        if self._continues:
            self._shown = self._unchanged.keep(self._continued(given))
        else:
            self._shown = given
        return self._shown

    def kept(self) -> tuple[Family, ...]:
        """What stays when the process is gone: the cumulative samples as they were last shown.

        Without gauges, summaries' quantiles and everything else that was true only then.
        """
        return self._unchanged_kept.keep(
            [cumulative_part(family) for family in self._shown if is_cumulative(family.metadata)]
        )

    def _read(self, family: Family) -> dict[str, float]:
        counted = self._counted.get((family.metadata.name, family.metadata.type))
        if counted is not None and counted.page is family:
            return counted.read
        return values_of(family)

    def _begun_anew(self, values: Mapping[tuple[str, str], Mapping[str, float]]) -> bool:
        """Whether the page shows that its process is another one."""
        for key, counted in self._counted.items():
            now = values.get(key, {})
            if now is counted.read:
                continue
            for series, before in counted.values.items():
                value = now.get(series)
                if value is None:
                    return True
                if -math.inf < value < before and not may_fall(series, counted.page.metadata):
                    return True
        return False

    def _begin_anew(self) -> None:
        """Make what has been counted so far the offsets of what will be."""
        if not self._continues:
            self._unchanged.keep(self._shown)
        self._continues = True
        for counted in self._counted.values():
            for series, value in counted.values.items():
                before = counted.offsets.get(series, 0.0)
                counted.offsets[series] = (
                    before + value if math.isfinite(before + value) else before
                )
            counted.page = without_lines(counted.page)
            counted.values = {}
            counted.shown = None

    def _see(self, family: Family, values: dict[str, float] | None) -> None:
        """Take one family of the page, with its cumulative values."""
        if values is None:
            return
        key = (family.metadata.name, family.metadata.type)
        counted = self._counted.get(key)
        if counted is None:
            counted = self._counted[key] = _Counted(without_lines(family))
        if counted.page is not family:
            counted.page, counted.read, counted.shown = family, values, None
        counted.values = _finite(values, counted.values, family.metadata)

    def _continued(self, given: Sequence[Family]) -> Sequence[Family]:
        """The page's families with their offsets, and behind them those that are not back."""
        present = {(family.metadata.name, family.metadata.type) for family in given}
        taken = frozenset().union(*[family.metadata.text_names for family in given])
        for key in self._counted.keys() - present:
            counted = self._counted[key]
            if not counted.offsets or not taken.isdisjoint(counted.page.metadata.text_names):
                del self._counted[key]
            elif counted.page.chunks:
                counted.page, counted.shown = without_lines(counted.page), None
        gone = [_show(counted) for key, counted in self._counted.items() if key not in present]
        return [*[self._continue(family) for family in given], *gone]

    def _continue(self, family: Family) -> Family:
        counted = self._counted.get((family.metadata.name, family.metadata.type))
        return family if counted is None else _show(counted)


def _show(counted: _Counted) -> Family:
    """A family with its offsets; offsets that fit its samples no more are dropped."""
    if counted.shown is None:
        missing = _missing(counted)
        if missing or any(counted.offsets.values()):
            counted.shown = continued(counted.page, counted.offsets, missing)
        else:
            counted.shown = counted.page
    return counted.shown


def _missing(counted: _Counted) -> Sequence[str]:
    """The series of the label sets that have not come back."""
    if counted.offsets.keys() == counted.values.keys():
        return ()
    metadata = counted.page.metadata
    before = _by_label_set(counted.offsets, metadata)
    now = _by_label_set(counted.values, metadata)
    present = set(label_sets(counted.page))
    missing: list[str] = []
    for labels, series in before.items():
        if labels not in present:
            missing += series
        elif set(series) != set(now.get(labels, ())):
            for one in series:
                del counted.offsets[one]
    return missing


def _by_label_set(series: Iterable[str], metadata: Metadata) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in series:
        found.setdefault(label_set(one, metadata), []).append(one)
    return found


def _finite(
    values: dict[str, float], before: Mapping[str, float], metadata: Metadata
) -> dict[str, float]:
    """Values, with those of before in the place of what is not finite.

    For the whole label set, whose buckets would not fit each other; a sum is by itself, because
    one observation of NaN leaves it so for ever.
    """
    if math.isfinite(sum(values.values())):
        return values
    broken = {
        label_set(series, metadata)
        for series, value in values.items()
        if not math.isfinite(value) and not may_fall(series, metadata)
    }
    return {
        series: before.get(series, 0.0)
        if not math.isfinite(value)
        or (label_set(series, metadata) in broken and not may_fall(series, metadata))
        else value
        for series, value in values.items()
    }
