"""A page is the joined lines of its families, whole or compressed."""

from __future__ import annotations

import gzip
import subprocess

import pytest

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.exposition.rendering import Renderer, render
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import Series
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


def test_lines_and_samples_of_a_family_are_the_same() -> None:
    lines = b'a_total{x="} 1",y="\\\\\\"\\n"} 1.0\na_total 2.0\n'
    metadata = Metadata("a", "counter")
    given = Family(metadata, frozenset({"a_total"}), (lines[:20], lines[20:]))
    assert given.samples == (
        Sample(Series.of("a_total", {"y": '\\"\n', "x": "} 1"}), "1.0"),
        Sample(Series.of("a_total", {}), "2.0"),
    )
    assert given.samples[0].series.labels == {"x": "} 1", "y": '\\"\n'}
    assert given.samples[0].series.name == "a_total"
    again = Family.of_samples(metadata, given.samples)
    assert (again.lines, again.sample_names) == (lines, given.sample_names)
    assert render([again], openmetrics=True) == render([given], openmetrics=True)
