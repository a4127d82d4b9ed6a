"""Totals of a page that continue over restarts of the process behind the page.

A restarted process counts from zero again; its totals are the counts before the restart, added to
the values of its page. The page is the only evidence, and a page can be wrong: a collector failed,
a value was corrected, the body was truncated. A total that is too high would stay too high, so the
rule prefers a total that is too low. The rule judges each label set (one counter, or all series of
one histogram or summary) by its count:

- A fall to half or less, on two pages in succession: the label set started again, and its former
  value is added from then on. Until then the total does not change.
- A smaller fall is a correction: the total does not change until the value exceeds it.
- The total of a missing label set does not change, and continues when the label set returns.
- All label sets started again, missing ones included, in one of two cases. Either the start time
  of the process moved forward by more than `CLEAR_MOVE_SECONDS` from one page to the next. Or
  nearly all label sets fell, and at least one of them fell to half or less. Each family has the
  same weight, whatever the number of its series. A missing label set has not fallen.
- After an observed end of the process, the next page with any such series decides. All label sets
  started again if more than half of them fell, by any amount and with the same weights. A missing
  label set has fallen in this case, because a new process has few label sets at first.
- A label set that returns with other series (a histogram with other bounds) starts from its page,
  because its former values do not fit the new series. If only some series are missing, the others
  continue, and a fall is not judged.
- A value that is not finite is shown as it is; the rule uses the last finite value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from dynamometer.exposition.cumulative import (
    Reading,
    Values,
    cumulative_part,
    is_cumulative,
    readings_of,
    with_totals,
    without_samples,
)
from dynamometer.exposition.families import Family
from dynamometer.exposition.reuse import FamilyMap, UnchangedFamilies

# Adjustments of the clock, from which start times are computed, are smaller.
CLEAR_MOVE_SECONDS: Final = 5.0
# Shares of the families, and of the label sets of one family.
_NEARLY_ALL: Final = 0.9
_MAJORITY: Final = 0.5


class _LabelSet:
    """The totals of one label set.

    Attributes:
        level: the highest count since its start.
        waiting: True if the last page showed a clear fall: the next page decides.
    """

    __slots__ = ("_offsets", "_since", "level", "waiting")

    def __init__(self, now: Reading) -> None:
        self._offsets: Values = {}  # the totals at the last restart
        self._start(now)  # sets `_since`, the values since that restart

    def _start(self, now: Reading) -> None:
        """Replace the values by those of a page."""
        self._since = Reading(dict(now.counts), {s: _finite(v) for s, v in now.sums.items()})
        self.level = now.level
        self.waiting = False

    def has_series_of(self, now: Reading) -> bool:
        """Return whether a reading has the same series."""
        return now.same_series(self._since)

    def fell_clearly(self, now: Reading) -> bool:
        """Return whether the count fell to half or less."""
        return now.level < self.level and now.level <= self.level / 2

    def update(self, now: Reading) -> None:
        """Continue with a page of the same process."""
        if not self.has_series_of(now):
            self._update_other_series(now)
        elif not self.fell_clearly(now):
            self._raise(now)
        elif self.waiting:
            self.restart()
            self._start(now)
        else:
            self.waiting = True

    def update_restarted(self, now: Reading) -> None:
        """Continue with the first page of another process."""
        if self.has_series_of(now):
            self.restart()
        else:
            self._offsets = {}
        self._start(now)

    def restart(self) -> None:
        """Keep the totals as offsets, and count from zero."""
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
        since = dict(self._since.items())  # of all series, missing ones included
        for series, value in now.items():
            if series in since:
                yield series, max(value, since[series]) + self._offsets.get(series, 0.0)

    def _update_other_series(self, now: Reading) -> None:
        if not (now.part_of(self._since) and any(self._offsets.values())):
            self._offsets = {}
            self._start(now)

    def _raise(self, now: Reading) -> None:
        """Raise the counts and replace the sums, unless the counts fell a little."""
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
class _CumulativeFamily:
    """A family with cumulative samples.

    Attributes:
        page: the family as on the last page; without samples if it is missing there.
        readings: the samples of `page`, by label set.
        sets: the totals, by label set.
        label_sets: the label sets of known series.
        waiting: True if the next page decides about one of `sets`.
        replaced: True if the page has another family with one of the names, which hides this one.
        shown: the family with its totals; None if outdated.
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

    def update(self, family: Family, readings: Mapping[str, Reading], *, restarted: bool) -> None:
        """Continue with the family of a page and its readings."""
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
                known.update_restarted(now)
            else:
                known.update(now)
        if restarted:
            for labels, known in self.sets.items():
                if labels not in readings or not readings[labels].finite:
                    known.restart()
        self.waiting = any(known.waiting for known in self.sets.values())

    def show(self) -> Family:
        """Return the page's family with its totals, followed by missing label sets."""
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
            self.shown = with_totals(self.page, totals, missing) if totals or missing else self.page
        return self.shown


_Found: TypeAlias = tuple[_CumulativeFamily, Family, Mapping[str, Reading]]


class Totals:
    """Keeps the totals of one page over restarts of its process, by the rule of this module.

    Counters, histograms and the counts and sums of summaries continue; all other samples are as on
    the page. One thread at a time may use an object.
    """

    def __init__(self) -> None:
        self._page: tuple[Family, ...] = ()
        self._shown: tuple[Family, ...] = ()
        self._counted: dict[tuple[str, str], _CumulativeFamily] = {}
        self._began: float | None = None
        self._ended = False
        self._unchanged = UnchangedFamilies()
        self._cumulative_parts = FamilyMap(cumulative_part)

    def update(
        self, families: Sequence[Family], *, began: float | None = None, ended: bool = False
    ) -> tuple[Family, ...]:
        """Return the families of a page with their totals: the same objects if nothing changed.

        Args:
            families: the families of the whole page, each name and type once, as from a parser.
            began: the start time of the page's process, seconds since the epoch; None if unknown.
            ended: True if the process of the last page ended. Another process may continue the
                counts by itself, from files that both share.
        """
        page = tuple(families)
        moved = _moved(self._began, began)
        self._began = began
        self._ended |= ended
        waiting = any(counted.waiting for counted in self._counted.values())
        if page == self._page and not moved and not waiting:
            return self._shown  # families compare by identity
        self._page = page
        found = [
            (counted, family, counted.read(family))
            for counted, family in self._cumulative_families(page)
        ]
        restarted = self._nearly_all_fell(found) or moved
        self._ended = self._ended and not restarted
        for counted, family, readings in found:
            counted.update(family, readings, restarted=restarted)
        shown = self._unchanged.reuse(self._with_totals(page))
        self._shown = page if shown == page else shown
        return self._shown

    def kept(self) -> tuple[Family, ...]:
        """Return the cumulative samples as last shown, which stay after the end of the process.

        Gauges, summaries' quantiles and all other samples describe a running process.
        """
        return self._cumulative_parts.apply(
            [family for family in self._shown if is_cumulative(family.metadata)]
        )

    def _cumulative_families(
        self, page: Sequence[Family]
    ) -> Sequence[tuple[_CumulativeFamily, Family]]:
        """Return all families with totals, each as on the page: missing ones without samples."""
        by_key = {_key(family): family for family in page}
        taken = frozenset().union(*[family.metadata.text_names for family in page])
        for key, family in by_key.items():
            if is_cumulative(family.metadata) and key not in self._counted:
                self._counted[key] = _CumulativeFamily(without_samples(family))
        for key, counted in self._counted.items():
            if key in by_key:
                counted.replaced = False
            elif not taken.isdisjoint(counted.page.metadata.text_names):
                counted.replaced = True
        return [
            (counted, by_key.get(key) or without_samples(counted.page))
            for key, counted in self._counted.items()
        ]

    def _nearly_all_fell(self, found: Iterable[_Found]) -> bool:
        """Return whether the page shows that its process restarted; see the module's rule."""
        ended = self._ended and any(readings for _, _, readings in found)
        shares: list[float] = []
        any_clearly = False
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
                    any_clearly = any_clearly or known.fell_clearly(now)
            if judged:
                shares.append(fallen / judged)
        if ended:
            self._ended = False
            return sum(shares) > _MAJORITY * len(shares)
        return any_clearly and sum(shares) >= _NEARLY_ALL * len(shares)

    def _with_totals(self, page: Sequence[Family]) -> Sequence[Family]:
        """Return the page's families with their totals, followed by the missing families."""
        present = {_key(family) for family in page}
        missing = [
            counted.show()
            for key, counted in self._counted.items()
            if key not in present and not counted.replaced
        ]
        shown = [
            family if (counted := self._counted.get(_key(family))) is None else counted.show()
            for family in page
        ]
        return [*shown, *missing]


def _key(family: Family) -> tuple[str, str]:
    return family.metadata.text_name, family.metadata.type


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _moved(before: float | None, now: float | None) -> bool:
    """Return whether a start time belongs to another process."""
    return before is not None and now is not None and now - before > CLEAR_MOVE_SECONDS
