"""docs/sglang-metrics.md names every family of the installed SGLang, and is current.

test_docs.py compares the families of the plain run with a live page.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))

import generate
import sglang_page

SEEN, UNSEEN = sglang_page.read(), sglang_page.unseen()


def names_in_the_source() -> set[str]:
    """Return the names of families in the source of the installed SGLang."""
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.submodule_search_locations
    (package,) = found.submodule_search_locations
    texts = (path.read_text(encoding="utf-8") for path in Path(package, "srt").rglob("*.py"))
    return {name for text in texts for name in re.findall(r"[\"'](sglang:\w+)[\"']", text)}


def counted(name: str) -> str:
    return name.removesuffix("_total")


def test_the_page_is_current() -> None:
    assert sglang_page.PAGE.read_text(encoding="utf-8") == sglang_page.page(), "make docs"


def test_the_page_has_every_family_of_the_installed_engine() -> None:
    assert {counted(name) for name in {*SEEN, *UNSEEN}} == {
        counted(name) for name in names_in_the_source()
    }


def test_a_family_that_a_run_shows_has_no_reason_for_its_absence() -> None:
    assert not SEEN.keys() & UNSEEN.keys()


@pytest.mark.parametrize("name", sorted({*SEEN, *UNSEEN}))
def test_a_family_has_one_category(name: str) -> None:
    assert len(sglang_page.categories(name)) == 1


@pytest.mark.parametrize("run", sglang_page.RUNS)
def test_each_run_is_recorded(run: str) -> None:
    """A rank's gauges are on every page, also on that of the second of two nodes."""
    shown = {name for name, seen in SEEN.items() if run in seen.labels}
    assert {"sglang:num_running_reqs", "sglang:token_usage"} <= shown


def test_the_families_of_the_plain_run_are_those_of_the_metrics_page() -> None:
    plain = {
        name: (seen.type, seen.labels[sglang_page.PLAIN])
        for name, seen in SEEN.items()
        if sglang_page.PLAIN in seen.labels
    }
    documented = {
        name: (family.type, family.labels)
        for name, family in generate.read()
        if name.startswith("sglang:")
    }
    assert plain == documented, "make sglang-runs docs"
