"""The sample lines as bytes, in chunks, of which only those that changed are joined again.

A chunk is a list of pieces, alternately the left part of a line and its value, so that a
new value is one assignment; and the bytes that they were last joined to. A chunk is small,
and does not divide a histogram's label set, whose lines change together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_lines
from dynamometer.multiprocess.cells import NOWHERE, Cells, Kind, OpenFamily

LINES_PER_CHUNK: Final = 16
# A few milliseconds' work: a reading has pauses in between.
LINES_PER_REBUILD: Final = 256
LINES_PER_UPDATE: Final = 4096


@dataclass(slots=True)
class _Chunk:
    """Some lines of a family.

    Attributes:
        pieces: the left part of each line, and its value.
        shown: the family's chunks.
        place: which of them this one is.
    """

    pieces: list[bytes]
    shown: _Shown
    place: int


@dataclass(slots=True, eq=False)
class _Shown:
    """A family as it is on the page.

    Attributes:
        joined: the bytes of its chunks.
        numbers: of its chunks.
        sample_names: the names of its samples.
        family: all that as a value; None where it is no longer current.
    """

    metadata: Metadata
    joined: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    sample_names: set[bytes] = field(default_factory=set)
    family: Family | None = None

    def current(self) -> Family:
        """The family's value."""
        if self.family is None:
            names = frozenset([name.decode() for name in self.sample_names])
            self.family = Family(self.metadata, names, tuple(self.joined))
        return self.family

    def change(self) -> None:
        """Take in that a chunk was joined again."""
        family = self.family
        if family is not None:
            self.family = Family(family.metadata, family.sample_names, tuple(self.joined))


class Chunks:
    """The families' bytes, kept current."""

    def __init__(self, cells: Cells) -> None:
        """An empty page.

        Args:
            cells: the numbers that it shows.
        """
        self._cells = cells
        self._chunks: list[_Chunk | None] = []
        self._free: list[int] = []
        self._shown: dict[OpenFamily, _Shown] = {}

    def rebuild(self, families: Sequence[OpenFamily]) -> int:
        """Make families' bytes anew, after lines of them came or went.

        Returns:
            How many of them, from the first on: as many as have some lines together, so that
            a first reading has pauses.
        """
        parts: list[tuple[_Shown, list[int]]] = []
        lines = count = 0
        for family in families:
            self.remove(family)
            shown = self._shown[family] = _Shown(family.metadata)
            for part in self._parts(family):
                parts.append((shown, part))
                lines += len(part)
            family.restructured = False
            count += 1
            if lines >= LINES_PER_REBUILD:
                break
        self._add_chunks(parts)
        return count

    def remove(self, family: OpenFamily) -> None:
        """Take a family off the page."""
        shown = self._shown.pop(family, None)
        for number in shown.numbers if shown else ():
            self._chunks[number] = None
            self._free.append(number)

    def update(self) -> int:
        """Format values that changed, and join their chunks.

        Returns:
            How many: less than `LINES_PER_UPDATE` when there are no more.
        """
        cells = self._cells
        changed = cells.changed()[:LINES_PER_UPDATE]
        if not changed.size:
            return 0
        values = cells.values[changed]
        cells.shown[changed] = values.view(np.int64)
        numbers = cells.chunk[changed].tolist()
        all_chunks = self._chunks
        chunks = {number: chunk for number in set(numbers) if (chunk := all_chunks[number])}
        pieces = {number: chunk.pieces for number, chunk in chunks.items()}
        slots = cells.slot[changed].tolist()
        for number, slot, line in zip(numbers, slots, format_lines(values), strict=True):
            pieces[number][slot] = line
        touched: dict[_Shown, None] = {}
        for chunk in chunks.values():
            shown = chunk.shown
            shown.joined[chunk.place] = b"".join(chunk.pieces)
            touched[shown] = None
        for shown in touched:
            shown.change()
        return int(changed.size)

    def families(self, table: Mapping[str, OpenFamily]) -> tuple[Family, ...]:
        """The families by name, each the same object as before where nothing in it changed."""
        shown = self._shown
        return tuple([shown[table[name]].current() for name in sorted(table)])

    def gone(self, table: Iterable[OpenFamily]) -> Sequence[OpenFamily]:
        """The families on the page that are none of `table`."""
        return list(self._shown.keys() - set(table))

    def _parts(self, family: OpenFamily) -> Iterator[list[int]]:
        """The cells of each chunk of a family."""
        absent = self._cells.absent
        lines: list[int] = []
        for block in family.blocks(self._cells, LINES_PER_CHUNK):
            if family.kind is Kind.RECENT:
                self._cells.chunk[block] = NOWHERE
                lines += [cell for cell in block if not absent[cell]]
            else:
                lines += block
            if len(lines) >= LINES_PER_CHUNK:
                yield lines
                lines = []
        if lines:
            yield lines

    def _add_chunks(self, parts: Sequence[tuple[_Shown, list[int]]]) -> None:
        cells = self._cells
        all_series = cells.series
        every = np.array([cell for _, lines in parts for cell in lines], np.intp)
        values = cells.values[every]
        formatted = format_lines(values)
        numbers: list[int] = []
        begin = 0
        for shown, lines in parts:
            end = begin + len(lines)
            pieces: list[bytes] = [b""] * (2 * len(lines))
            pieces[0::2] = series = [all_series[cell] or b"" for cell in lines]
            pieces[1::2] = formatted[begin:end]
            shown.sample_names.update([text.partition(b"{")[0].rstrip() for text in series])
            number = self._number(_Chunk(pieces, shown, len(shown.joined)))
            shown.joined.append(b"".join(pieces))
            shown.numbers.append(number)
            numbers.append(number)
            begin = end
        lengths = np.array([len(lines) for _, lines in parts], np.intp)
        begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
        cells.chunk[every] = np.repeat(np.array(numbers, np.int32), lengths)
        cells.slot[every] = 2 * (np.arange(every.size) - begins) + 1
        cells.shown[every] = values.view(np.int64)

    def _number(self, chunk: _Chunk) -> int:
        if self._free:
            number = self._free.pop()
            self._chunks[number] = chunk
            return number
        self._chunks.append(chunk)
        return len(self._chunks) - 1
