"""From the keys of the files to cells: which sample line each entry belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import BUCKET_LABEL, Metadata
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.series import label_name, label_text, series_text
from dynamometer.multiprocess.cells import NOWHERE, Cells, HistogramGroup, Kind, OpenFamily
from dynamometer.multiprocess.faults import FileFault, OmittedError, Reason
from dynamometer.multiprocess.file_format import FileName, Key, parse_key
from dynamometer.multiprocess.page_names import Written, written

_KINDS: Final = {
    "all": Kind.LAST,
    "min": Kind.MIN,
    "max": Kind.MAX,
    "sum": Kind.SUM,
    "mostrecent": Kind.RECENT,
}
_BOUND_IN_KEY: Final = f'"{BUCKET_LABEL}": "'.encode()


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


class KeyTable:
    """All families, and the way from an entry of a file to its cell.

    Attributes:
        families: by name.
    """

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
        self._labels = {label_name(name): value for name, value in labels.items()}
        self._max_series = max_series
        self._accumulate = accumulate
        self._owners: dict[str, OpenFamily] = {}  # of each name on a page
        # The keys of cells, and of histograms' groups, that a page writes in another way.
        self._original_of: dict[int, Key] = {}
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
            OmittedError: the key is one, but its series has no place on the page.
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
            self._drop_if_empty(family)
        for cell in gone:
            self._original_of.pop(cell, None)
        self.forget_keys()

    def _find(self, file: FileName, key: Key) -> int:
        found = written(key, file.type)
        family = self._family(file, found.family, key)
        own = file.series_labels(found.labels)
        text = self._text({**self._labels, **own} if self._labels else own)
        series = f"{series_text(found.sample, text)} ".encode()
        cell = family.cell_of.get(series)
        if cell is not None:
            _check_original(key, found, self._original_of.get(cell))
            return cell
        if len(self._cells) >= self._max_series:
            self._drop_if_empty(family)
            raise self._full()
        cell = family.new_cell(self._cells, series)
        if not found.regular:
            self._original_of[cell] = key
        return cell

    def _drop_if_empty(self, family: OpenFamily) -> None:
        """Remove a family that has no series; its names are free again."""
        if not len(family):
            del self.families[family.metadata.name]
            self._owners = {name: one for name, one in self._owners.items() if one is not family}

    def _family(self, file: FileName, name: str, key: Key) -> OpenFamily:
        """The family of a name, new or known.

        Raises:
            OmittedError: a family of another type has the name, or one of its samples' names.
        """
        family = self.families.get(name)
        if family is not None and family.metadata.type == file.type and family.mode == file.mode:
            return family
        metadata = Metadata(name, file.type, key.documentation)
        names = metadata.text_names | metadata.names
        owner = next((self._owners[one] for one in names if one in self._owners), None)
        if owner is not None:
            raise OmittedError(
                Reason.TYPE_CONFLICT,
                f"{owner.metadata.name} is {_described(owner.metadata.type, owner.mode)} elsewhere",
            )
        kind = _KINDS[file.mode] if file.type == "gauge" else Kind.SUM
        family = self.families[name] = OpenFamily(metadata, file.mode, kind)
        self._owners.update(dict.fromkeys(names, family))
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
        found = written(key, file.type)
        limit = found.labels.get(BUCKET_LABEL)
        bound = None if limit is None else self._bound(limit)
        family = self._family(file, found.family, key)
        texts = self._texts
        labels = sorted({**self._labels, **found.labels, BUCKET_LABEL: ""}.items())
        parts = [texts.get(item) or self._new_text(item) for item in labels]
        place = parts.index(texts[BUCKET_LABEL, ""])
        group = self._group(family, ",".join([*parts[:place], *parts[place + 1 :]]), key, found)
        if bound is None:
            return family.other_cell(self._cells, group, found.sample)
        template = _Template(
            family,
            group,
            "".join([f"{text}," for text in parts[:place]]),
            "".join([f",{text}" for text in parts[place + 1 :]]),
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

    def _group(self, family: OpenFamily, labels: str, key: Key, found: Written) -> HistogramGroup:
        group = family.groups.get(labels)
        if group is not None:
            _check_original(key, found, group.original)
            return group
        if len(self._cells) >= self._max_series:
            self._drop_if_empty(family)
            raise self._full()
        return family.new_group(labels, None if found.regular else key)

    def _bound(self, written: str) -> _Bound:
        key = written.encode()
        bound = self._bounds.get(key)
        if bound is None:
            value = _parse_bound(written)
            bound = _Bound(value, label_text(BUCKET_LABEL, format_number(value)))
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

    def _full(self) -> OmittedError:
        return OmittedError(Reason.MAX_SERIES, f"more than {self._max_series} series")


def _check_original(key: Key, found: Written, original: Key | None) -> None:
    """Raise `OmittedError` where a series has come from a key of other names.

    Args:
        key: the key.
        found: the key as a page writes it.
        original: the key of a known series, of any bucket; None where it is written as it is.
    """
    if original is None and found.regular:
        return
    if original is None or found.regular or _identity(key) != _identity(original):
        first = Key(found.family, found.sample, found.labels, "") if original is None else original
        raise OmittedError(
            Reason.OVERLAP, f"{_spelled(key)} is written as {_spelled(first)}, which came first"
        )


def _spelled(key: Key) -> str:
    """A key's sample and the names of its labels."""
    return f"{key.sample}{{{','.join(key.labels)}}}"


def _identity(key: Key) -> tuple[str, dict[str, str]]:
    """What two keys of one series have in common, whatever their sample or bucket."""
    return key.family, {name: value for name, value in key.labels.items() if name != BUCKET_LABEL}


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
