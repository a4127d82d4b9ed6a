"""The sample lines as bytes, divided into chunks; only changed chunks are joined again.

A chunk has a list of pieces, which are the left part of a line, its value, the left part of the
next line, and so on. A changed value is one assignment; then the pieces are joined. A chunk is
small, but has all lines of a histogram's label set, because these change together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.numbers import format_lines
from dynamometer.multiprocess.aggregation import CellValues
from dynamometer.multiprocess.cells import NOWHERE, Cells, MutableFamily

LINES_PER_CHUNK: Final = 16


@dataclass(slots=True)
class _Chunk:
    """Some lines of a family.

    Attributes:
        pieces: the left part of each line, and its value.
        family: the family.
        place: the chunk's place in the family's `joined`.
    """

    pieces: list[bytes]
    family: _ShownFamily
    place: int


@dataclass(slots=True, eq=False)
class _ShownFamily:
    """A family on the page.

    Attributes:
        metadata: the family's metadata.
        cells: the cells of its lines.
        joined: the bytes of its chunks.
        chunk_numbers: the numbers of its chunks.
        sample_names: the names of its samples.
        value: the family as an immutable value; None where the value is outdated.
    """

    metadata: Metadata
    cells: list[int] = field(default_factory=list)
    joined: list[bytes] = field(default_factory=list)
    chunk_numbers: list[int] = field(default_factory=list)
    sample_names: frozenset[str] = frozenset()
    value: Family | None = None

    def current(self) -> Family:
        """Return the family's value, the same object while nothing changed."""
        if self.value is None:
            self.value = Family(self.metadata, self.sample_names, tuple(self.joined))
        return self.value


class Chunks:
    """The lines of all families as bytes."""

    def __init__(self, cells: Cells) -> None:
        """Start with an empty page.

        Args:
            cells: the cells of all lines.
        """
        self._cells = cells
        self._chunks: list[_Chunk | None] = []
        self._free: list[int] = []  # numbers of removed chunks
        self._shown: dict[MutableFamily, _ShownFamily] = {}
        self._families: tuple[Family, ...] = ()
        # For each cell: its chunk's number, the index of its value in the chunk's pieces, and the
        # bits of that value.
        self._chunk_of: NDArray[np.int32] = np.empty(0, np.int32)
        self._place_of: NDArray[np.int32] = np.empty(0, np.int32)
        self._bits_of: NDArray[np.int64] = np.empty(0, np.int64)

    def update(
        self, table: Mapping[str, MutableFamily], computed: CellValues
    ) -> tuple[Family, ...]:
        """Bring the lines up to date with the present families and values.

        Args:
            table: the families by name.
            computed: the values of all cells.

        Returns:
            The families, sorted by name: the same tuple, and the same objects, while nothing
            changed.
        """
        self._grow(computed.values.size)
        self._mark_appeared(computed)
        removed = [
            family for family in self._shown if table.get(family.metadata.name) is not family
        ]
        rebuilt = [family for family in table.values() if family.restructured]
        for family in [*removed, *rebuilt]:  # before any is added, which reuses chunk numbers
            self._remove(family)
        self._add(rebuilt, computed)
        updated = self._update_values(computed.values)
        if removed or rebuilt or updated:
            shown = self._shown
            self._families = tuple([shown[table[name]].current() for name in sorted(table)])
        return self._families

    def _grow(self, capacity: int) -> None:
        new = capacity - self._chunk_of.size
        if new > 0:
            nowhere = np.full(new, NOWHERE, np.int32)
            self._chunk_of = np.concatenate([self._chunk_of, nowhere])
            self._place_of = np.concatenate([self._place_of, np.zeros(new, np.int32)])
            self._bits_of = np.concatenate([self._bits_of, np.zeros(new, np.int64)])

    def _mark_appeared(self, computed: CellValues) -> None:
        """Mark the families of mostrecent gauges whose values appeared or disappeared."""
        is_shown = self._chunk_of[computed.recent] != NOWHERE
        for cell in computed.recent[is_shown == computed.absent].tolist():
            family = self._cells.families[cell]
            assert family is not None
            family.restructured = True

    def _remove(self, family: MutableFamily) -> None:
        shown = self._shown.pop(family, None)
        if shown is None:
            return
        self._chunk_of[shown.cells] = NOWHERE
        for number in shown.chunk_numbers:
            self._chunks[number] = None
            self._free.append(number)

    def _add(self, families: Sequence[MutableFamily], computed: CellValues) -> None:
        """Build the chunks of families that are not shown."""
        hidden = frozenset(computed.recent[computed.absent].tolist())
        parts: list[tuple[_ShownFamily, list[int]]] = []
        for family in families:
            shown = self._shown[family] = _ShownFamily(family.metadata)
            for part in self._divide(family, hidden):
                shown.cells += part
                parts.append((shown, part))
            family.restructured = False
        all_cells = np.array([cell for _, part in parts for cell in part], np.intp)
        values = computed.values[all_cells]
        lines = format_lines(values)
        numbers: list[int] = []
        begin = 0
        for shown, part in parts:
            end = begin + len(part)
            numbers.append(self._add_chunk(shown, part, lines[begin:end]))
            begin = end
        sizes = np.array([len(part) for _, part in parts], np.intp)
        begins = np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._chunk_of[all_cells] = np.repeat(np.array(numbers, np.int32), sizes)
        self._place_of[all_cells] = 2 * (np.arange(all_cells.size) - begins) + 1
        self._bits_of[all_cells] = values.view(np.int64)
        for family in families:
            shown = self._shown[family]
            series = [self._cells.series[cell] or b"" for cell in shown.cells]
            names = {one.partition(b"{")[0].rstrip() for one in series}
            shown.sample_names = frozenset([name.decode() for name in names])

    def _add_chunk(self, shown: _ShownFamily, cells: list[int], lines: Sequence[bytes]) -> int:
        """Build a chunk at the end of its family, and return its number."""
        pieces: list[bytes] = [b""] * (2 * len(cells))
        pieces[0::2] = [self._cells.series[cell] or b"" for cell in cells]
        pieces[1::2] = lines
        chunk = _Chunk(pieces, shown, len(shown.joined))
        shown.joined.append(b"".join(pieces))
        if self._free:
            number = self._free.pop()
            self._chunks[number] = chunk
        else:
            number = len(self._chunks)
            self._chunks.append(chunk)
        shown.chunk_numbers.append(number)
        return number

    def _divide(self, family: MutableFamily, hidden: frozenset[int]) -> Iterator[list[int]]:
        """Yield the cells of each chunk of a family, without the hidden cells."""
        part: list[int] = []
        for block in family.divide(self._cells, LINES_PER_CHUNK):
            part += [cell for cell in block if cell not in hidden] if hidden else block
            if len(part) >= LINES_PER_CHUNK:
                yield part
                part = []
        if part:
            yield part

    def _update_values(self, values: NDArray[np.float64]) -> bool:
        """Format the values that changed, and join their chunks; return whether any changed."""
        changed = np.flatnonzero(values.view(np.int64) != self._bits_of)
        changed = changed[self._chunk_of[changed] != NOWHERE]
        if not changed.size:
            return False
        lines = format_lines(values[changed])
        self._bits_of[changed] = values[changed].view(np.int64)
        numbers = self._chunk_of[changed].tolist()
        places = self._place_of[changed].tolist()
        chunks = {number: chunk for number in set(numbers) if (chunk := self._chunks[number])}
        pieces = {number: chunk.pieces for number, chunk in chunks.items()}
        for number, place, line in zip(numbers, places, lines, strict=True):
            pieces[number][place] = line
        for chunk in chunks.values():
            chunk.family.joined[chunk.place] = b"".join(chunk.pieces)
            chunk.family.value = None
        return True
