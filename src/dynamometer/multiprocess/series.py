"""From the keys of the files to cells: which sample line each entry belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.series import label_text
from dynamometer.multiprocess.cells import NOWHERE, Cells, Kind
from dynamometer.multiprocess.entries import Key, parse_key
from dynamometer.multiprocess.family import HistogramGroup, OpenFamily
from dynamometer.multiprocess.faults import FileFault, Reason
from dynamometer.multiprocess.filename import FileName

_KINDS: Final = {
    "all": Kind.LAST,
    "min": Kind.MIN,
    "max": Kind.MAX,
    "sum": Kind.SUM,
    "mostrecent": Kind.RECENT,
}
_PID: Final = "pid"
_BOUND: Final = "le"


class LeftOutError(Exception):
    """An entry has no place on the page, though its file is good."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SeriesTable:
    """All families, and the way from an entry of a file to its cell."""

    def __init__(
        self, cells: Cells, labels: Mapping[str, str], *, max_series: int, accumulate: bool
    ) -> None:
        """An empty table.

        Args:
            cells: where new series get their cells.
            labels: constant ones, added to every series that has not its own.
            max_series: how many there may be; a histogram that is begun is finished.
            accumulate: add up a histogram's buckets, and make its `_count` of them.
        """
        self.families: dict[str, OpenFamily] = {}
        self._cells = cells
        self._labels = dict(labels)
        self._max_series = max_series
        self._accumulate = accumulate
        self._cell_of_key: dict[tuple[str, str, bytes], int] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._bounds: dict[str, tuple[float, str]] = {}

    def cell(self, file: FileName, key: bytes) -> int:
        """The cell of an entry.

        Args:
            file: the name of the entry's file.
            key: the entry's key.

        Raises:
            FileFault: the key is no metric.
            LeftOutError: the key is one, but its series has no place on the page.
        """
        # The same key is in the files of many processes; only `all` tells them apart.
        known = (file.type, file.mode, key)
        cell = NOWHERE if file.pid_label else self._cell_of_key.get(known, NOWHERE)
        if cell == NOWHERE:
            cell = self._find(file, parse_key(key))
            if not file.pid_label:
                self._cell_of_key[known] = cell
        return cell

    def forget_keys(self) -> None:
        """Give up what makes reading many files at once fast: it is large."""
        self._cell_of_key.clear()
        self._texts.clear()
        self._bounds.clear()

    def remove(self, gone: list[int], counts: NDArray[np.int64]) -> None:
        """Remove the cells that nothing keeps, and the families that have none left.

        Args:
            gone: the cells.
            counts: how many raw values each cell has.
        """
        by_family: dict[OpenFamily, set[int]] = {}
        for cell in gone:
            family = self._cells.families[cell]
            if family is not None:
                by_family.setdefault(family, set()).add(cell)
        for family, cells in by_family.items():
            family.drop(self._cells, cells, counts)
            if not len(family):
                del self.families[family.metadata.name]
        self.forget_keys()

    def _find(self, file: FileName, key: Key) -> int:
        family = self._family(file, key)
        labels = {**self._labels, **key.labels} if self._labels else key.labels
        try:
            if file.type == "histogram":
                return self._find_in_histogram(family, key, labels)
            return self._find_line(family, file, key, labels)
        finally:
            if not len(family):  # its first series has been refused
                del self.families[key.family]

    def _find_line(
        self, family: OpenFamily, file: FileName, key: Key, labels: Mapping[str, str]
    ) -> int:
        if file.pid_label:
            labels = {**labels, _PID: file.pid}
        elif file.type == "gauge" and _PID in key.labels:
            labels = {name: value for name, value in labels.items() if name != _PID}
        text = self._text(labels)
        if len(self._cells) >= self._max_series and not family.has_series(key.sample, text):
            raise self._full()
        return family.series_cell(self._cells, key.sample, text)

    def _family(self, file: FileName, key: Key) -> OpenFamily:
        family = self.families.get(key.family)
        if family is None:
            metadata = Metadata(key.family, file.type, key.documentation)
            kind = _KINDS[file.mode] if file.type == "gauge" else Kind.SUM
            family = self.families[key.family] = OpenFamily(metadata, file.mode, kind)
        elif (family.metadata.type, family.mode) != (file.type, file.mode):
            raise LeftOutError(
                Reason.TYPE_CONFLICT,
                f"{key.family} is {_described(family.metadata.type, family.mode)} elsewhere",
            )
        return family

    def _find_in_histogram(self, family: OpenFamily, key: Key, labels: Mapping[str, str]) -> int:
        texts = self._texts
        found = [texts.get(item) or self._new_text(item) for item in sorted(labels.items())]
        written = labels.get(_BOUND)
        if written is None:
            group = self._group(family, ",".join(found))
            return family.other_cell(self._cells, group, key.sample)
        bound, text = self._bounds.get(written) or self._new_bound(written)
        place = found.index(texts[_BOUND, written])
        found[place] = text
        group = self._group(family, ",".join(found[:place] + found[place + 1 :]))
        cell = group.buckets.get(bound)
        if cell is not None:
            return cell
        return family.bucket_cell(
            self._cells, group, bound, ",".join(found), count=self._accumulate
        )

    def _group(self, family: OpenFamily, labels: str) -> HistogramGroup:
        if len(self._cells) >= self._max_series and labels not in family.groups:
            raise self._full()
        return family.group(labels)

    def _text(self, labels: Mapping[str, str]) -> str:
        texts = self._texts
        return ",".join(
            [texts.get(item) or self._new_text(item) for item in sorted(labels.items())]
        )

    def _new_text(self, item: tuple[str, str]) -> str:
        text = self._texts[item] = label_text(*item)
        return text

    def _new_bound(self, written: str) -> tuple[float, str]:
        bound = _bound(written)
        found = self._bounds[written] = bound, label_text(_BOUND, format_number(bound))
        return found

    def _full(self) -> LeftOutError:
        return LeftOutError(Reason.MAX_SERIES, f"more than {self._max_series} series")


def _bound(text: str) -> float:
    try:
        bound = float(text)
    except ValueError:
        raise FileFault(Reason.KEY, f"a bucket's bound {text!r} is no number") from None
    if math.isnan(bound):
        raise FileFault(Reason.KEY, "a bucket's bound is NaN")
    return bound


def _described(kind: str, mode: str) -> str:
    return f"a {kind} of mode {mode}" if mode else f"a {kind}"
