"""Totals of a page that continue over restarts of the process behind the page.

A restarted process counts from zero again; its totals are what it counted before, added to what its
page shows now. The page is the only witness, and one page can be wrong: a collector failed, a value
was corrected, the body was cut. A total that was never counted would stay wrong for good, so the
rule prefers a total that is too low. It judges each label set (one counter, or all series of one
histogram or summary) by its count:

- A fall to half or less, on two pages in a row: the label set began again, and its former value is
  added from now on. Until then the total stays where it is.
- A smaller fall is a correction: the total stays where it is until the value exceeds it.
- A label set that is missing stays at its total, and continues when it is back.
- All label sets began again, missing ones included, when the start time of the process moved
  forward by more than `CLEAR_MOVE_SECONDS` from one page to the next, or when nearly all of them
  fell and at least one of them to half or less. Every family has the same weight in that, however
  many series it has, and a missing label set has not fallen. Where the process was seen to end,
  its next page with any such series decides: small falls suffice, a missing label set counts as
  fallen, because a new process has few at first, and more than half are enough.
- A label set that is back with other series (a histogram with other bounds) starts from its page,
  because its former values do not fit the new series. Where it only misses some series, the others
  continue, and no fall is judged.
- A value that is not finite is shown, and the last finite one counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from dynamometer.exposition.cumulative import (
    Reading,
    Values,
    continued,
    cumulative_part,
    is_cumulative,
    readings_of,
    without_samples,
)
from dynamometer.exposition.families import Family
from dynamometer.exposition.reuse import FamilyMap, UnchangedFamilies

# Start times are computed from clocks, which are adjusted by less.
CLEAR_MOVE_SECONDS: Final = 5.0
# Of families, and of the label sets of one family.
_NEARLY_ALL: Final = 0.9
_MOST: Final = 0.5


class _LabelSet:
    """The totals of one label set.

    Attributes:
        level: its highest count since it began.
        waiting: the last page showed a clear fall, and the next one decides.
    """

    __slots__ = ("_offsets", "_since", "level", "waiting")

    def __init__(self, now: Reading) -> None:
        self._offsets: Values = {}  # what was counted before it began
        self._start(now)

    def _start(self, now: Reading) -> None:
        """Begin with the values of a page."""
        self._since = Reading(dict(now.counts), {s: _finite(v) for s, v in now.sums.items()})
        self.level = now.level
        self.waiting = False

    def has_series_of(self, now: Reading) -> bool:
        """Return whether a reading has the same series."""
        return now.same_series(self._since)

    def fell_clearly(self, now: Reading) -> bool:
        """Return whether the count fell to half or less."""
        return now.level < self.level and now.level <= self.level / 2

    def take(self, now: Reading) -> None:
        """Take the values of a page of the same process."""
        if not self.has_series_of(now):
            self._take_other_series(now)
        elif not self.fell_clearly(now):
            self._raise(now)
        elif self.waiting:
            self.begin_again()
            self._start(now)
        else:
            self.waiting = True

    def take_of_next_process(self, now: Reading) -> None:
        """Take the values of the first page of another process."""
        if self.has_series_of(now):
            self.begin_again()
        else:
            self._offsets = {}
        self._start(now)

    def begin_again(self) -> None:
        """Add what was counted to everything that will be counted."""
        for series, total in self.totals():
            if math.isfinite(total):
                self._offsets[series] = total
        since = self._since
        self._start(Reading(dict.fromkeys(since.counts, 0.0), dict.fromkeys(since.sums, 0.0)))

    def totals(self) -> Iterator[tuple[str, float]]:
        """Return the series with their totals."""
        return ((s, value + self._offsets.get(s, 0.0)) for s, value in self._since.items())

    def totals_on(self, now: Reading) -> Iterator[tuple[str, float]]:
        """Return the series of a page with their totals."""
        if self.has_series_of(now):
            yield from self.totals()
            return
        since = dict(self._since.items())  # of more series, since the last page that had them all
        for series, value in now.items():
            if series in since:
                yield series, max(value, since[series]) + self._offsets.get(series, 0.0)

    def _take_other_series(self, now: Reading) -> None:
        if not (now.part_of(self._since) and any(self._offsets.values())):
            self._offsets = {}
            self._start(now)

    def _raise(self, now: Reading) -> None:
        """Raise the counts to those of the page, unless they fell a little; the sum moves along."""
        self.waiting = False
        if now.level < self.level:
            return
        self.level = now.level
        counts, sums = self._since.counts, self._since.sums
        for series, value in now.counts.items():
            counts[series] = max(value, counts[series])
        for series, value in now.sums.items():
            if math.isfinite(value):
                sums[series] = value


@dataclass(slots=True)
class _Counted:
    """A family with cumulative samples.

    Attributes:
        page: as on the last page; without samples where it is missing there.
        readings: the samples of `page`, by label set.
        sets: the totals, by label set.
        label_sets: those of known series.
        waiting: the next page decides on one of `sets`.
        replaced: a family of another type has the name; this one is hidden until it is back.
        shown: the family with its totals; None until it is asked for.
    """

    page: Family
    readings: Mapping[str, Reading] = field(default_factory=dict)
    sets: dict[str, _LabelSet] = field(default_factory=dict)
    label_sets: dict[str, str] = field(default_factory=dict)
    waiting: bool = False
    replaced: bool = False
    shown: Family | None = None

    def read(self, family: Family) -> Mapping[str, Reading]:
        """Return the readings of the family of a page."""
        return self.readings if self.page is family else readings_of(family, self.label_sets)

    def take(self, family: Family, readings: Mapping[str, Reading], *, restarted: bool) -> None:
        """Take the family of a page with its readings."""
        if self.page is family and not restarted and not self.waiting:
            return
        self.page, self.readings, self.shown = family, readings, None
        for labels, now in readings.items():
            known = self.sets.get(labels)
            if not now.finite:
                continue
            if known is None:
                self.sets[labels] = _LabelSet(now)
            elif restarted:
                known.take_of_next_process(now)
            else:
                known.take(now)
        if restarted:
            for labels, known in self.sets.items():
                if labels not in readings or not readings[labels].finite:
                    known.begin_again()
        self.waiting = any(known.waiting for known in self.sets.values())

    def show(self) -> Family:
        """Return the page's family with its totals, and those of missing label sets behind."""
        if self.shown is None:
            totals: Values = {}
            missing: Values = {}
            for labels, known in self.sets.items():
                now = self.readings.get(labels)
                if now is None:
                    missing.update(known.totals())
                else:
                    values = dict(now.items())
                    totals.update(
                        (series, total)
                        for series, total in known.totals_on(now)
                        if math.isfinite(value := values.get(series, math.nan)) and total != value
                    )
            self.shown = continued(self.page, totals, missing) if totals or missing else self.page
        return self.shown


_Found: TypeAlias = tuple[_Counted, Family, Mapping[str, Reading]]


class Totals:
    """Keeps the totals of one page over restarts of its process, by the rule of this module.

    Counters, histograms and the counts and sums of summaries continue; everything else is the
    page's. One thread at a time may use an object.
    """

    def __init__(self) -> None:
        self._given: tuple[Family, ...] = ()
        self._shown: tuple[Family, ...] = ()
        self._counted: dict[tuple[str, str], _Counted] = {}
        self._began: float | None = None
        self._ended = False
        self._unchanged = UnchangedFamilies()
        self._cumulative_parts = FamilyMap(cumulative_part)

    def update(
        self, families: Sequence[Family], *, began: float | None = None, ended: bool = False
    ) -> tuple[Family, ...]:
        """Return the families of a page with their totals: the same objects where nothing changed.

        Args:
            families: of the whole page, each name and type once, as parsers give them.
            began: start time of the page's process, seconds since the epoch; None if unknown.
            ended: the process of the page before was seen to end. Another one may continue its
                counts by itself, from files that both share.
        """
        given = tuple(families)
        moved = _moved(self._began, began)
        self._began = began
        self._ended |= ended
        waiting = any(counted.waiting for counted in self._counted.values())
        if given == self._given and not moved and not waiting:
            return self._shown  # families are equal to themselves only
        self._given = given
        found = [
            (counted, family, counted.read(family)) for counted, family in self._counted_of(given)
        ]
        restarted = self._nearly_all_fell(found) or moved
        self._ended = self._ended and not restarted
        for counted, family, readings in found:
            counted.take(family, readings, restarted=restarted)
        shown = self._unchanged.reuse(self._continued(given))
        if shown == given:
            shown = given
        if shown != self._shown:
            self._shown = shown
        return self._shown

    def kept(self) -> tuple[Family, ...]:
        """Return what stays without the process: the cumulative samples as they were last shown.

        Gauges, summaries' quantiles and everything else that was true only then are dropped.
        """
        return self._cumulative_parts.apply(
            [family for family in self._shown if is_cumulative(family.metadata)]
        )

    def _counted_of(self, given: Sequence[Family]) -> Sequence[tuple[_Counted, Family]]:
        """Return all families with totals, each as on the page: missing ones without samples."""
        page = {_key(family): family for family in given}
        taken = frozenset().union(*[family.metadata.text_names for family in given])
        for key, family in page.items():
            if is_cumulative(family.metadata) and key not in self._counted:
                self._counted[key] = _Counted(without_samples(family))
        for key, counted in self._counted.items():
            if key in page:
                counted.replaced = False
            elif not taken.isdisjoint(counted.page.metadata.text_names):
                counted.replaced = True
        return [
            (counted, page.get(key) or without_samples(counted.page))
            for key, counted in self._counted.items()
        ]

    def _nearly_all_fell(self, found: Iterable[_Found]) -> bool:
        """Return whether the page shows that its process is another one; see the module."""
        ended = self._ended and any(readings for _, _, readings in found)
        parts: list[float] = []
        clearly = False
        for counted, _, readings in found:
            judged = fallen = 0
            for labels, known in counted.sets.items():
                now = readings.get(labels)
                if known.level <= 0:
                    continue  # a count of zero cannot fall
                if now is None:
                    judged += 1
                    fallen += ended
                elif now.finite and known.has_series_of(now):
                    judged += 1
                    fallen += now.level < known.level
                    clearly = clearly or known.fell_clearly(now)
            if judged:
                parts.append(fallen / judged)
        if ended:
            self._ended = False
            return sum(parts) > _MOST * len(parts)
        return clearly and sum(parts) >= _NEARLY_ALL * len(parts)

    def _continued(self, given: Sequence[Family]) -> Sequence[Family]:
        """The page's families with their totals, and behind them those that are missing."""
        present = {_key(family) for family in given}
        missing = [
            counted.show()
            for key, counted in self._counted.items()
            if key not in present and not counted.replaced
        ]
        return [*[self._continue(family) for family in given], *missing]

    def _continue(self, family: Family) -> Family:
        counted = self._counted.get(_key(family))
        return family if counted is None else counted.show()


def _key(family: Family) -> tuple[str, str]:
    return family.metadata.text_name, family.metadata.type


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _moved(before: float | None, now: float | None) -> bool:
    """Whether a start time is that of another process."""
    return before is not None and now is not None and now - before > CLEAR_MOVE_SECONDS
