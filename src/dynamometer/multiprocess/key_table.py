"""The cell of each key: the sample line that an entry of a file belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import BUCKET_LABEL, Metadata
from dynamometer.exposition.label_bounds import LabelBounds, LongValueError
from dynamometer.exposition.numbers import format_number
from dynamometer.exposition.series import label_name, label_text, series_text
from dynamometer.multiprocess.cells import NOWHERE, Cells, HistogramGroup, Kind, MutableFamily
from dynamometer.multiprocess.faults import FileFault, OmittedError, Reason
from dynamometer.multiprocess.file_format import FileName, Key, parse_key
from dynamometer.multiprocess.page_names import PageNames, spell

_KINDS: Final = {
    "all": Kind.LAST,
    "min": Kind.MIN,
    "max": Kind.MAX,
    "sum": Kind.SUM,
    "mostrecent": Kind.RECENT,
}
_BOUND_IN_KEY: Final = f'"{BUCKET_LABEL}": "'.encode()


class _Bound(NamedTuple):
    """A bucket's upper bound, and the text of its label."""

    value: float
    label: str


class _Template(NamedTuple):
    """A label set of a histogram, and the text of its labels before and after the bound."""

    family: MutableFamily
    group: HistogramGroup
    before: str
    after: str


class KeyTable:
    """All families, and the cells of their series.

    Attributes:
        families: the families by name.
    """

    def __init__(
        self,
        cells: Cells,
        labels: Mapping[str, str],
        *,
        max_series: int,
        accumulate: bool,
        label_bounds: LabelBounds | None = None,
    ) -> None:
        """Start with an empty table.

        Args:
            cells: all cells.
            labels: constant labels, added to each series that does not have them.
            max_series: the maximum number of series; a partly shown histogram is completed.
            accumulate: accumulate a histogram's buckets, and derive its `_count` from them.
            label_bounds: the bounds of label values; None for no bounds.
        """
        self.families: dict[str, MutableFamily] = {}
        self._cells = cells
        self._labels = {label_name(name): value for name, value in labels.items()}
        self._max_series = max_series
        self._accumulate = accumulate
        self._label_bounds = label_bounds
        self._owners: dict[str, MutableFamily] = {}  # the family of each name on a page
        # The key of each cell whose names a page spells differently; see also `HistogramGroup`.
        self._original_of: dict[int, Key] = {}
        # Caches of the keys of one reading; see `forget_keys`.
        self._cell_of_key: dict[tuple[str, str, bytes], int] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._bounds: dict[bytes, _Bound] = {}
        self._templates: dict[tuple[bytes, bytes], _Template] = {}

    def find_cell(self, file: FileName, key: bytes) -> int:
        """Return the cell of an entry; add the cell where the series is new.

        Args:
            file: the name of the entry's file.
            key: the entry's key.

        Raises:
            FileFault: The key is not valid.
            OmittedError: The key is valid, but its series cannot be on the page.
        """
        if file.type == "histogram":
            return self._find_histogram_cell(file, key)
        # The files of many processes have the same key, and one cell except in mode `all`.
        known = (file.type, file.mode, key)
        cell = NOWHERE if file.pid_label else self._cell_of_key.get(known, NOWHERE)
        if cell == NOWHERE:
            cell = self._find_plain_cell(file, self._parse_key(file, key))
            if not file.pid_label:
                self._cell_of_key[known] = cell
        return cell

    def forget_keys(self) -> None:
        """Clear the caches, which make the first reading of many files fast."""
        self._cell_of_key.clear()
        self._texts.clear()
        self._bounds.clear()
        self._templates.clear()

    def remove(self, unused: list[int], used: NDArray[np.bool_]) -> None:
        """Remove unused cells, and the families that have no cells left.

        Args:
            unused: the cells.
            used: bool, shape (capacity,): whether a cell has values or counts.
        """
        by_family: dict[MutableFamily, set[int]] = {}
        for cell in unused:
            family = self._cells.families[cell]
            if family is not None:
                by_family.setdefault(family, set()).add(cell)
        for family, cells in by_family.items():
            family.drop(self._cells, cells, used)
            self._drop_if_empty(family)
        for cell in unused:
            self._original_of.pop(cell, None)
        self.forget_keys()

    def _parse_key(self, file: FileName, key: bytes) -> Key:
        """Parse a key, and apply the bounds of label values.

        Raises:
            FileFault: The key is not valid.
            OmittedError: A label value is too long.
        """
        parsed = parse_key(key)
        if self._label_bounds is None:
            return parsed
        try:
            labels = self._label_bounds.apply(parsed.family, file.type, parsed.labels)
        except LongValueError as error:
            raise OmittedError(Reason.LABEL_BYTES, str(error)) from None
        return parsed if labels is parsed.labels else parsed._replace(labels=dict(labels))

    def _find_plain_cell(self, file: FileName, key: Key) -> int:
        found = spell(key, file.type)
        family = self._find_family(file, found.family, key)
        own = file.adjust_labels(found.labels)
        text = self._join_labels({**self._labels, **own} if self._labels else own)
        series = f"{series_text(found.sample, text)} ".encode()
        cell = family.cell_of.get(series)
        if cell is not None:
            _check_original(key, found, self._original_of.get(cell))
            return cell
        if len(self._cells) >= self._max_series:
            self._drop_if_empty(family)
            raise self._too_many_series()
        cell = family.add_cell(self._cells, series)
        if not found.unchanged:
            self._original_of[cell] = key
        return cell

    def _drop_if_empty(self, family: MutableFamily) -> None:
        """Remove a family that has no series; other families may use its names again."""
        if not len(family):
            del self.families[family.metadata.name]
            self._owners = {name: one for name, one in self._owners.items() if one is not family}

    def _find_family(self, file: FileName, name: str, key: Key) -> MutableFamily:
        """Return the family of a name; add the family where it is new.

        Raises:
            OmittedError: A family of another type has the name, or one of its samples' names.
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
                f"the family {owner.metadata.name} is already "
                f"{_describe(owner.metadata.type, owner.mode)}",
            )
        kind = _KINDS[file.mode] if file.type == "gauge" else Kind.SUM
        family = self.families[name] = MutableFamily(metadata, file.mode, kind)
        self._owners.update(dict.fromkeys(names, family))
        return family

    def _find_histogram_cell(self, file: FileName, key: bytes) -> int:
        """Return the cell of a histogram's entry; add the cell where the series is new.

        The keys of a label set's buckets differ only in the bound, so that only one of them is
        parsed. The text `"le": "` in a key's JSON is always the label, never part of a string.
        """
        before, _, rest = key.partition(_BOUND_IN_KEY)
        bound_text, _, after = rest.partition(b'"')
        template = self._templates.get((before, after))
        bound = self._bounds.get(bound_text)
        if template is None or bound is None:
            return self._parse_histogram_key(file, self._parse_key(file, key), (before, after))
        cell = template.group.buckets.get(bound.value)
        return self._find_bucket(template, bound) if cell is None else cell

    def _parse_histogram_key(
        self, file: FileName, key: Key, template_key: tuple[bytes, bytes]
    ) -> int:
        found = spell(key, file.type)
        bound_text = found.labels.get(BUCKET_LABEL)
        bound = None if bound_text is None else self._find_bound(bound_text)
        family = self._find_family(file, found.family, key)
        texts = self._texts
        labels = sorted({**self._labels, **found.labels, BUCKET_LABEL: ""}.items())
        parts = [texts.get(item) or self._add_text(item) for item in labels]
        place = parts.index(texts[BUCKET_LABEL, ""])
        group = self._find_group(
            family, ",".join([*parts[:place], *parts[place + 1 :]]), key, found
        )
        if bound is None:
            return family.find_other(self._cells, group, found.sample)
        template = _Template(
            family,
            group,
            "".join([f"{text}," for text in parts[:place]]),
            "".join([f",{text}" for text in parts[place + 1 :]]),
        )
        self._templates[template_key] = template
        cell = group.buckets.get(bound.value)
        return self._find_bucket(template, bound) if cell is None else cell

    def _find_bucket(self, template: _Template, bound: _Bound) -> int:
        return template.family.find_bucket(
            self._cells,
            template.group,
            bound.value,
            f"{template.before}{bound.label}{template.after}",
            count=self._accumulate,
        )

    def _find_group(
        self, family: MutableFamily, labels: str, key: Key, found: PageNames
    ) -> HistogramGroup:
        group = family.groups.get(labels)
        if group is not None:
            _check_original(key, found, group.original)
            return group
        if len(self._cells) >= self._max_series:
            self._drop_if_empty(family)
            raise self._too_many_series()
        return family.add_group(labels, None if found.unchanged else key)

    def _find_bound(self, text: str) -> _Bound:
        key = text.encode()
        bound = self._bounds.get(key)
        if bound is None:
            value = _parse_bound(text)
            bound = _Bound(value, label_text(BUCKET_LABEL, format_number(value)))
            self._bounds[key] = bound
        return bound

    def _join_labels(self, labels: Mapping[str, str]) -> str:
        texts = self._texts
        return ",".join(
            [texts.get(item) or self._add_text(item) for item in sorted(labels.items())]
        )

    def _add_text(self, item: tuple[str, str]) -> str:
        text = self._texts[item] = label_text(*item)
        return text

    def _too_many_series(self) -> OmittedError:
        text = f"more than {self._max_series} series (--max-series, or the argument max_series)"
        return OmittedError(Reason.MAX_SERIES, text)


def _check_original(key: Key, found: PageNames, original: Key | None) -> None:
    """Raise `OmittedError` where a known series came from a key with other names.

    Args:
        key: the key.
        found: the key's names on a page.
        original: the key of the known series, of any bucket; None where its names are unchanged.
    """
    if original is None and found.unchanged:
        return
    if original is None or found.unchanged or _label_set(key) != _label_set(original):
        first = Key(found.family, found.sample, found.labels, "") if original is None else original
        raise OmittedError(
            Reason.OVERLAP,
            f"{_describe_key(key)} is written as {_describe_key(first)}, which came first",
        )


def _describe_key(key: Key) -> str:
    """Return a key's sample and the names of its labels, for a message."""
    return f"{key.sample}{{{','.join(key.labels)}}}"


def _label_set(key: Key) -> tuple[str, dict[str, str]]:
    """Return the parts of a key that are the same for all samples and buckets of a label set."""
    return key.family, {name: value for name, value in key.labels.items() if name != BUCKET_LABEL}


def _parse_bound(text: str) -> float:
    try:
        bound = float(text)
    except ValueError:
        raise FileFault(Reason.KEY, f"a bucket's bound {text!r} is not a number") from None
    if math.isnan(bound):
        raise FileFault(Reason.KEY, "a bucket's bound is NaN")
    return bound


def _describe(kind: str, mode: str) -> str:
    return f"a {kind} of mode {mode}" if mode else f"a {kind}"
