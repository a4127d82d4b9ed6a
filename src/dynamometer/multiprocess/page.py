"""The sample lines as bytes, in chunks, of which only those that changed are joined again.

A chunk is a list of pieces, alternately the left part of a line and its value, so that a
new value is one assignment; and the bytes that they were last joined to. A family has one
chunk, or many where it is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dynamometer.exposition.families import Family
from dynamometer.exposition.numbers import format_lines
from dynamometer.multiprocess.cells import NOWHERE, Cells
from dynamometer.multiprocess.family import OpenFamily

LINES_PER_CHUNK: Final = 32


@dataclass(slots=True)
class _Chunk:
    pieces: list[bytes]
    joined: bytes
    family: OpenFamily


class Page:
    """The families' bytes, kept current."""

    def __init__(self, cells: Cells) -> None:
        """An empty page.

        Args:
            cells: the numbers that it shows.
        """
        self._cells = cells
        self._chunks: list[_Chunk | None] = []
        self._free: list[int] = []
        self._chunks_of: dict[OpenFamily, list[int]] = {}
        self._sample_names: dict[OpenFamily, frozenset[str]] = {}
        self._families: dict[OpenFamily, Family] = {}

    def rebuild(self, family: OpenFamily) -> None:
        """Make a family's bytes anew, after lines of it came or went."""
        self._clear(family)
        cells = self._cells
        lines = np.array(family.lines(cells), np.int64)
        present = lines[~cells.absent[lines]]
        cells.chunk[lines] = NOWHERE
        chunks = self._chunks_of[family] = []
        for begin in range(0, present.size, LINES_PER_CHUNK):
            part = present[begin : begin + LINES_PER_CHUNK]
            values = cells.values[part]
            pieces: list[bytes] = [b""] * (2 * part.size)
            pieces[0::2] = [cells.series[cell] or b"" for cell in part.tolist()]
            pieces[1::2] = format_lines(values)
            number = self._number(_Chunk(pieces, b"".join(pieces), family))
            chunks.append(number)
            cells.chunk[part] = number
            cells.slot[part] = np.arange(1, 2 * part.size, 2)
            cells.shown[part] = values.view(np.int64)
        self._sample_names[family] = frozenset(
            name for cell in present.tolist() if (name := _name(cells.series[cell]))
        )
        family.restructured = False
        self._show(family)

    def remove(self, family: OpenFamily) -> None:
        """Take a family off the page."""
        self._clear(family)
        self._families.pop(family, None)
        self._sample_names.pop(family, None)

    def update(self) -> bool:
        """Format the values that changed and join their chunks; whether there were any."""
        cells = self._cells
        changed = cells.changed()
        if not changed.size:
            return False
        values = cells.values[changed]
        cells.shown[changed] = values.view(np.int64)
        numbers = cells.chunk[changed]
        chunks = self._chunks
        touched = np.unique(numbers).tolist()
        pieces = {number: chunk.pieces for number in touched if (chunk := chunks[number])}
        lines = format_lines(values)
        for number, slot, line in zip(
            numbers.tolist(), cells.slot[changed].tolist(), lines, strict=True
        ):
            pieces[number][slot] = line
        families: dict[OpenFamily, None] = {}
        for number in touched:
            chunk = chunks[number]
            assert chunk is not None
            chunk.joined = b"".join(chunk.pieces)
            families[chunk.family] = None
        for family in families:
            self._show(family)
        return True

    def families(self, table: Mapping[str, OpenFamily]) -> tuple[Family, ...]:
        """The families by name, each the same object as before where nothing in it changed."""
        shown = self._families
        return tuple([shown[table[name]] for name in sorted(table)])

    def gone(self, table: Iterable[OpenFamily]) -> Sequence[OpenFamily]:
        """The families on the page that are none of `table`."""
        return list(self._families.keys() - set(table))

    def _show(self, family: OpenFamily) -> None:
        chunks = [chunk for n in self._chunks_of[family] if (chunk := self._chunks[n])]
        self._families[family] = Family(
            family.metadata,
            self._sample_names[family],
            tuple([chunk.joined for chunk in chunks]),
        )

    def _clear(self, family: OpenFamily) -> None:
        for number in self._chunks_of.pop(family, ()):
            self._chunks[number] = None
            self._free.append(number)

    def _number(self, chunk: _Chunk) -> int:
        if self._free:
            number = self._free.pop()
            self._chunks[number] = chunk
            return number
        self._chunks.append(chunk)
        return len(self._chunks) - 1


def _name(series: bytes | None) -> str:
    return (series or b"").partition(b"{")[0].rstrip().decode()
