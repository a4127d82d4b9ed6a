"""From the keys of the files to cells: which sample line each entry belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

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
_BOUND: Final = "le"
_BOUND_IN_KEY: Final = b'"le": "'


class LeftOutError(Exception):
    """An entry has no place on the page, though its file is good."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class _Bound(NamedTuple):
    """A bucket's upper bound, and its label as we write it."""

    value: float
    label: str


class _Template(NamedTuple):
    """Where the buckets of a label set belong, and the labels around the bound."""

    family: OpenFamily
    group: HistogramGroup
    before: str
    behind: str


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
        self._bounds: dict[bytes, _Bound] = {}
        self._templates: dict[tuple[bytes, bytes], _Template] = {}

    def cell(self, file: FileName, key: bytes) -> int:
        """The cell of an entry.

        Args:
            file: the name of the entry's file.
            key: the entry's key.

        Raises:
            FileFault: the key is no metric.
            LeftOutError: the key is one, but its series has no place on the page.
        """
        if file.type == "histogram":
            return self._histogram_cell(file, key)
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
        self._templates.clear()

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
        own = file.own_labels(key.labels)
        text = self._text({**self._labels, **own} if self._labels else own)
        if len(self._cells) >= self._max_series and not family.has_series(key.sample, text):
            self._give_up_if_empty(family)
            raise self._full()
        return family.series_cell(self._cells, key.sample, text)

    def _give_up_if_empty(self, family: OpenFamily) -> None:
        """A family whose first series is refused is none."""
        if not len(family):
            del self.families[family.metadata.name]

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

    def _histogram_cell(self, file: FileName, key: bytes) -> int:
        """The cell of a histogram's entry.

        The keys of a label set's buckets differ in the bound alone, so that the first one
        tells what the others say: nothing but a label's name stands in JSON as `"le": "`.
        """
        before, _, rest = key.partition(_BOUND_IN_KEY)
        written, _, behind = rest.partition(b'"')
        template = self._templates.get((before, behind))
        bound = self._bounds.get(written)
        if template is None or bound is None:
            return self._find_in_histogram(file, parse_key(key), (before, behind))
        cell = template.group.buckets.get(bound.value)
        return self._new_bucket(template, bound) if cell is None else cell

    def _find_in_histogram(self, file: FileName, key: Key, around: tuple[bytes, bytes]) -> int:
        written = key.labels.get(_BOUND)
        bound = None if written is None else self._bound(written)
        family = self._family(file, key)
        texts = self._texts
        labels = sorted({**self._labels, **key.labels, _BOUND: ""}.items())
        found = [texts.get(item) or self._new_text(item) for item in labels]
        place = found.index(texts[_BOUND, ""])
        others = [*found[:place], *found[place + 1 :]]
        group = self._group(family, ",".join(others))
        if bound is None:
            return family.other_cell(self._cells, group, key.sample)
        template = _Template(
            family,
            group,
            "".join([f"{text}," for text in found[:place]]),
            "".join([f",{text}" for text in found[place + 1 :]]),
        )
        self._templates[around] = template
        cell = group.buckets.get(bound.value)
        return self._new_bucket(template, bound) if cell is None else cell

    def _new_bucket(self, template: _Template, bound: _Bound) -> int:
        return template.family.bucket_cell(
            self._cells,
            template.group,
            bound.value,
            f"{template.before}{bound.label}{template.behind}",
            count=self._accumulate,
        )

    def _group(self, family: OpenFamily, labels: str) -> HistogramGroup:
        if len(self._cells) >= self._max_series and labels not in family.groups:
            self._give_up_if_empty(family)
            raise self._full()
        return family.group(labels)

    def _bound(self, written: str) -> _Bound:
        key = written.encode()
        bound = self._bounds.get(key)
        if bound is None:
            value = _parse_bound(written)
            bound = _Bound(value, label_text(_BOUND, format_number(value)))
            self._bounds[key] = bound
        return bound

    def _text(self, labels: Mapping[str, str]) -> str:
        texts = self._texts
        return ",".join(
            [texts.get(item) or self._new_text(item) for item in sorted(labels.items())]
        )

    def _new_text(self, item: tuple[str, str]) -> str:
        text = self._texts[item] = label_text(*item)
        return text

    def _full(self) -> LeftOutError:
        return LeftOutError(Reason.MAX_SERIES, f"more than {self._max_series} series")


def _parse_bound(text: str) -> float:
    try:
        bound = float(text)
    except ValueError:
        raise FileFault(Reason.KEY, f"a bucket's bound {text!r} is no number") from None
    if math.isnan(bound):
        raise FileFault(Reason.KEY, "a bucket's bound is NaN")
    return bound


def _described(kind: str, mode: str) -> str:
    return f"a {kind} of mode {mode}" if mode else f"a {kind}"
