"""A page is the joined lines of its families, whole or compressed."""

from __future__ import annotations

import gzip
import subprocess

import pytest

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.exposition.rendering import Renderer, render
from parsing import parse


def family(name: str, lines: int, value: int = 1) -> Family:
    text = "".join(f'{name}{{x="{number}"}} {value}\n' for number in range(lines))
    (made,) = parse(f"# TYPE {name} gauge\n{text}".encode())
    return made


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_compressed_page_is_the_page(openmetrics: bool) -> None:
    renderer = Renderer()
    for families in ((family("a", 5000), family("b", 3)), (family("a", 5000, value=9),), ()):
        plain = renderer.render(families, openmetrics=openmetrics)
        packed = renderer.render(families, openmetrics=openmetrics, gzip=True)
        assert gzip.decompress(packed) == plain == render(families, openmetrics=openmetrics)


def test_the_program_gzip_reads_a_page() -> None:
    families = (family("a", 50_000),)
    packed = Renderer().render(families, gzip=True)
    done = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
    assert done.stdout == render(families)
    assert done.stderr == b""


def test_the_same_families_are_rendered_once() -> None:
    renderer = Renderer()
    families = (family("a", 3), family("b", 3))
    first = renderer.render(families, gzip=True)
    assert renderer.render(families, gzip=True) is first
    assert renderer.render((families[0], family("b", 3, value=2)), gzip=True) != first


def test_selections_have_pages_of_their_own() -> None:
    renderer = Renderer()
    families = (family("a", 3), family("b", 3))
    for number in range(40):
        only_b = Selection.of(names=["b", f"absent{number}"])
        assert renderer.render(families, only_b) == render(families[1:])
    assert renderer.render(families, EVERYTHING) == render(families)
