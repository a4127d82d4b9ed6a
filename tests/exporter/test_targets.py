"""The engines that flags select: a table of flags, without processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dynamometer.errors import SettingsError
from dynamometer.exporter import finder, targets
from dynamometer.exporter.finder import FoundEngine
from dynamometer.exporter.targets import NamedValue, Target, TargetFlags

PROCESS = psutil.Process()
FIRST = FoundEngine(
    process=PROCESS,
    description="7 (SGLang)",
    user="me",
    kind="sglang",
    model="m",
    port=30000,
    url="http://127.0.0.1:30000",
)


def select(flags: Sequence[str]) -> list[Target]:
    """Select by flags such as `--pid=7`."""
    values: dict[str, list[NamedValue]] = {"pid": [], "multiproc-dir": [], "engine-url": []}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        values[name].append(targets.split_name(value))
    return targets.select(
        TargetFlags(
            pids=values["pid"], directories=values["multiproc-dir"], urls=values["engine-url"]
        )
    )


def at(target: Target, base: str, page: str = "") -> Target:
    return replace(target, url=base, page_url=page or f"{base}/metrics")


# Flags, and the engines that they select.
SELECTED: dict[str, tuple[list[str], list[Target]]] = {
    "nothing": ([], []),
    "a host and port": (
        ["--engine-url=10.0.0.7:30000"],
        [at(Target(name="engine"), "http://10.0.0.7:30000")],
    ),
    "a URL with a slash": (
        ["--engine-url=https://h/"],
        [at(Target(name="engine"), "https://h")],
    ),
    "the URL of a page": (
        ["--engine-url=http://h:1/stats?format=text"],
        [at(Target(name="engine"), "http://h:1", "http://h:1/stats?format=text")],
    ),
    "a query without a path": (
        ["--engine-url=http://h:1?a=b"],
        [at(Target(name="engine"), "http://h:1", "http://h:1/metrics?a=b")],
    ),
    "an IPv6 address": (
        ["--engine-url=http://[::1]:1"],
        [at(Target(name="engine"), "http://[::1]:1")],
    ),
    "a name": (
        ["--engine-url=a=http://h:1"],
        [at(Target(name="a", named=True), "http://h:1")],
    ),
    "a relative directory": (
        ["--multiproc-dir=files"],
        [Target(name="engine", directories=(str(Path.cwd() / "files"),))],
    ),
    "several directories of one engine": (
        ["--multiproc-dir=/a", "--multiproc-dir=/b"],
        [Target(name="engine", directories=("/a", "/b"))],
    ),
    "a directory whose path has an equals sign": (
        ["--multiproc-dir=/a=b"],
        [Target(name="engine", directories=("/a=b",))],
    ),
    "a directory and a URL of one engine": (
        ["--multiproc-dir=/a", "--engine-url=h:1"],
        [at(Target(name="engine", directories=("/a",)), "http://h:1")],
    ),
    "flags of two engines, joined by name": (
        ["--engine-url=a=h:1", "--engine-url=b=h:2", "--multiproc-dir=b=/b"],
        [
            at(Target(name="b", named=True, directories=("/b",)), "http://h:2"),
            at(Target(name="a", named=True), "http://h:1"),
        ],
    ),
    "a process, which names the engine": (
        ["--pid=7"],
        [Target(name="sglang-30000", first=FIRST)],
    ),
    "a process with a name and a URL": (
        ["--pid=a=7", "--engine-url=a=h:1"],
        [at(Target(name="a", named=True, first=FIRST), "http://h:1")],
    ),
}


@pytest.fixture(autouse=True)
def one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pid belongs to the engine `FIRST`."""
    monkeypatch.setattr(finder, "engine_of", lambda _: FIRST)


@pytest.mark.parametrize("case", SELECTED)
def test_flags_select(case: str) -> None:
    flags, expected = SELECTED[case]
    assert select(flags) == expected


# Flags, and the message.
ERRORS = {
    "--engine-url=ftp://x": "--engine-url ftp://x: must be a URL such as http://127.0.0.1:30000",
    "--engine-url=http://": "--engine-url http://: must be a URL",
    "--engine-url=": "--engine-url '': must be a URL",
    "--engine-url=a=": "--engine-url a=: must be a URL",
    "--engine-url=h:0": "--engine-url h:0: must be a URL",
    "--engine-url=h:99999": "--engine-url h:99999: must be a URL",
    "--engine-url=a b:1": "--engine-url a b:1: must be a URL",
    "--engine-url=http://me:secret@h:1": "--engine-url: a user and a password in the URL are not",
    "--multiproc-dir=": "--multiproc-dir '': must be a directory",
    "--multiproc-dir=a=": "--multiproc-dir a=: must be a directory",
    "--pid=a=": "--pid a=: must be the number of a process",
    "--pid=a=x": "--pid a=x: must be the number of a process",
    "--engine-url=h:1 --engine-url=h:2": "--engine-url one=h:1 --engine-url two=h:2",
    "--engine-url=a=h:1 --engine-url=a=h:2": "give each engine a name of its own",
    "--pid=1 --pid=2": "--pid one=1 --pid two=2",
    **{
        f"--pid={pid}": f"--pid {pid or repr(pid)}: must be the number of a process"
        for pid in ("", "x", "-1", "1.0", "4_7", "\uff14\uff17", "9" * 20)
    },
}


@pytest.mark.parametrize("flags", ERRORS)
def test_wrong_flags_are_an_error(flags: str) -> None:
    with pytest.raises(SettingsError) as raised:
        select([f"--{flag}" for flag in f" {flags}".split(" --")[1:]])
    assert ERRORS[flags] in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_target_describes_its_process_directories_and_address() -> None:
    target = Target(name="a", first=FIRST, directories=("/a", "/b"))
    assert target.description == (
        "process 7 (SGLang) of me serving m, /a, /b, http://127.0.0.1:30000"
    )
    assert at(Target(name="a"), "http://h:1").description == "http://h:1"


def test_a_directory_may_be_missing_but_not_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    good = Target(name="a", directories=(str(tmp_path), str(tmp_path / "missing")))
    targets.check_directories([good])
    with pytest.raises(SettingsError, match=f"--multiproc-dir {file}: must be a directory"):
        targets.check_directories([good, Target(name="b", directories=(os.fspath(file),))])
