"""The directories of an engine's files, from its flags and the files that its processes map."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict

from dynamometer.exporter import locations, procfs
from dynamometer.exporter.finder import FoundEngine
from dynamometer.exporter.targets import Target

OWN = FoundEngine(process=psutil.Process(), description="7 (SGLang)", user="me")
URL = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Case:
    """Names of given directories, and the directories, reason and warnings that follow.

    `good` exists, `denied` exists and may not be read, `missing` does not exist.
    """

    given: Sequence[str]
    directories: Sequence[str]
    readable: Sequence[str]
    reason: str
    warnings: Sequence[str]
    url: str | None = None


CASES = {
    "one that exists": Case(
        ["good"], ["good"], ["good"], "{good}: the engine has not written multiprocess files", []
    ),
    "one that does not exist": Case(
        ["missing"],
        ["missing"],
        [],
        "{missing}: does not exist, or cannot be read",
        ["{missing} does not exist"],
    ),
    "one that may not be read": Case(
        ["denied"],
        ["denied"],
        [],
        "{denied}: does not exist, or cannot be read",
        ["no permission to read {denied}: run the exporter as {owner}, or as root"],
    ),
    "one that may not be read, with a URL": Case(
        ["denied"],
        ["denied"],
        [],
        "{denied}: does not exist, or cannot be read",
        [
            (
                "no permission to read {denied}: run the exporter as {owner}, or as root; "
                "meanwhile the engine's own page is fetched"
            )
        ],
        url=URL,
    ),
    "several, of which those are read that can be": Case(
        ["good", "missing", "denied"],
        ["good"],
        ["good"],
        "{good}: the engine has not written multiprocess files (*.db) yet",
        [
            "{missing} does not exist",
            "no permission to read {denied}: run the exporter as {owner}, or as root",
        ],
    ),
}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The paths of `CASES`, as another user than root finds them."""
    found = {name: str(tmp_path / name) for name in ("good", "denied", "missing")}
    for name in ("good", "denied"):
        Path(found[name]).mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path == found["good"])
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    return {**found, "owner": Path(found["good"]).owner()}


@pytest.mark.parametrize("case", CASES)
def test_given_directories(case: str, paths: dict[str, str]) -> None:
    wanted = CASES[case]
    target = Target(
        name="e", directories=tuple(paths[name] for name in wanted.given), url=wanted.url
    )
    found = locations.locate(target, None)
    assert found.directories == tuple(paths[name] for name in wanted.directories)
    assert found.readable == tuple(paths[name] for name in wanted.readable)
    assert found.missing_reason.startswith(wanted.reason.format(**paths))
    assert found.warnings == tuple(text.format(**paths) for text in wanted.warnings)


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Path]:
    """The directory of a file that this process maps."""
    directory = tmp_path / "mapped"
    directory.mkdir()
    file = MmapedDict(str(directory / "counter_1.db"))
    yield directory
    file.close()


def test_without_given_directories_those_of_mapped_files_are_found(mapped: Path) -> None:
    found = locations.locate(Target(name="e", first=OWN), OWN)
    assert str(mapped) in found.readable
    assert found.first is OWN


def test_given_directories_are_read_instead_of_those_of_mapped_files(
    mapped: Path, tmp_path: Path
) -> None:
    target = Target(name="e", first=OWN, directories=(str(tmp_path),))
    assert locations.locate(target, OWN).directories == (str(tmp_path),)


def test_an_engine_without_files_has_a_reason_and_no_warning() -> None:
    """While an engine loads, it has no files: the caller decides when that is a fault."""
    child = psutil.Popen(["sleep", "60"])
    try:
        first = replace(OWN, process=psutil.Process(child.pid))
        found = locations.locate(Target(name="e", first=first), first)
        assert found.missing_reason == (
            "process 7 (SGLang) and the processes that it started have no multiprocess files, "
            "and do not listen on a port"
        )
        assert found.warnings == ()
        found = locations.locate(Target(name="e", first=first), replace(first, url=URL))
        assert found.missing_reason.endswith("have no multiprocess files")
    finally:
        child.kill()
        child.wait()


def test_files_without_permission_are_a_warning_that_names_the_user(
    mapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(process: psutil.Process) -> dict[procfs.FileId, str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(procfs, "open_files", deny)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    found = locations.locate(Target(name="e", first=OWN), OWN)
    user = procfs.user_of(OWN.process)
    expected = (
        f"no permission to read process {OWN.process.pid}: run the exporter as {user}, or as root"
    )
    assert found.warnings == (expected,)
    assert found.missing_reason == expected


def test_an_ended_engine_has_no_processes() -> None:
    child = psutil.Popen(["true"])
    first = replace(OWN, process=psutil.Process(child.pid))
    child.wait()
    assert locations.members(first) == locations.members(None) == ()
