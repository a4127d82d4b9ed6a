"""Pages are made anew in part, and whole all the same."""

from __future__ import annotations

import gzip
import subprocess
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.exposition.compress import deflate
from dynamometer.exposition.compress import gzip as put_together
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.exposition.pages import Pages
from dynamometer.exposition.rendering import render
from parsing import parse


def family(name: str, lines: int, value: int = 1) -> Family:
    text = "".join(f'{name}{{x="{number}"}} {value}\n' for number in range(lines))
    (made,) = parse(f"# TYPE {name} gauge\n{text}".encode())
    return made


def page_of(pages: Pages, families: Sequence[Family], *, openmetrics: bool = False) -> bytes:
    plain = pages.render(families, EVERYTHING, openmetrics=openmetrics)
    packed = pages.compressed(families, EVERYTHING, openmetrics=openmetrics)
    assert gzip.decompress(packed) == plain == render(families, openmetrics=openmetrics)
    return packed


@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_parts_put_together_are_one_gzip_member(parts: list[bytes]) -> None:
    packed = put_together(parts, [deflate(part) for part in parts])
    reader = zlib.decompressobj(31)
    assert reader.decompress(packed) == b"".join(parts)
    assert reader.eof
    assert reader.unused_data == b""


def test_gzips_own_program_reads_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    parts = [b"a 1\n" * 50_000, b"", b"b 2\n"]
    packed = put_together(parts, [deflate(part) for part in parts])
    done = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
    assert done.stdout == b"".join(parts)
    assert done.stderr == b""


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_change_shows_and_all_else_stays(openmetrics: bool) -> None:
    pages = Pages()
    families = [family(f"f{number:02}", 2000) for number in range(12)]
    first = page_of(pages, tuple(families), openmetrics=openmetrics)
    assert page_of(pages, tuple(families), openmetrics=openmetrics) is first
    families[0] = family("f00", 2000, value=9)
    second = page_of(pages, tuple(families), openmetrics=openmetrics)
    assert second != first
    # What stands behind the part that changed is the same, up to the checksum and the length.
    quarter = len(first) // 4
    assert second[-quarter:-8] == first[-quarter:-8]
    del families[5]
    page_of(pages, tuple(families), openmetrics=openmetrics)
    page_of(pages, (), openmetrics=openmetrics)


def test_selections_have_pages_of_their_own() -> None:
    pages = Pages()
    families = (family("a", 3), family("b", 3))
    only_b = Selection.of(names=["b"])
    assert pages.render(families, only_b, openmetrics=False) == render(families[1:])
    assert pages.render(families, EVERYTHING, openmetrics=False) == render(families)
