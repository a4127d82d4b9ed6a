"""Which writers live: transitions of what is known of the engine, without processes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from dynamometer.exporter import procfs
from dynamometer.exporter.files_source import FilesSource
from dynamometer.exporter.writers import Change, Life, Writers

# Steps: what is known of the engine, and the writers that have files which are not retired.
# Then: who is retired, and who is resumed, by the last step.
CASES: Mapping[str, tuple[Sequence[tuple[Life, str]], str, str]] = {
    "unseen ones stand while it lives": ([(Life.LIVES, "ab")], "", ""),
    "they end with it": ([(Life.LIVES, "ab"), (Life.UNREACHABLE, "ab")], "ab", ""),
    "and return with it": (
        [(Life.LIVES, "ab"), (Life.UNREACHABLE, "ab"), (Life.UNREACHABLE, ""), (Life.LIVES, "")],
        "",
        "ab",
    ),
    "new files are another engine's": (
        [(Life.LIVES, "ab"), (Life.UNREACHABLE, "ab"), (Life.LIVES, "c")],
        "",
        "",
    ),
    "also those that came before its URL answered": (
        [(Life.LIVES, "a"), (Life.ENDED, "a"), (Life.ENDED, "c"), (Life.LIVES, "")],
        "",
        "c",
    ),
    "beside them, changes in old files are last words": (
        [(Life.LIVES, "a"), (Life.ENDED, "a"), (Life.ENDED, "ac"), (Life.LIVES, "")],
        "",
        "c",
    ),
    "changes in old files alone are the next engine's": (
        [(Life.LIVES, "ab"), (Life.ENDED, "ab"), (Life.ENDED, "a"), (Life.LIVES, "")],
        "",
        "a",
    ),
    "new files soon after its return are another engine's": (
        [(Life.LIVES, "a"), (Life.ENDED, "a"), (Life.LIVES, ""), (Life.LIVES, "ac")],
        "a",
        "",
    ),
    "where nothing tells, unseen ones have ended": ([(Life.UNKNOWN, "a")], "a", ""),
    "until their files change": (
        [(Life.UNKNOWN, "a"), (Life.UNKNOWN, ""), (Life.UNKNOWN, "a")],
        "",
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_known_of_the_engine_decides_over_unseen_writers(case: str) -> None:
    steps, retired, resumed = CASES[case]
    writers = Writers()
    change = Change()
    for life, names in steps:
        change = writers.update({name: [f"/none/{name}.db"] for name in names}, list, life)
    assert ("".join(sorted(change.retire)), "".join(sorted(change.resume))) == (retired, resumed)


def write(directory: Path, process: str, value: float) -> None:
    file = MmapedDict(str(directory / f"gauge_livesum_{process}.db"))
    file.write_value(mmap_key("app_busy", "app_busy", [], [], "Busy."), value, 0.0)
    file.close()


def source(directory: Path) -> FilesSource:
    found = FilesSource("e", constant={}, prefixes=("app_",), max_series=10_000, members=list)
    found.life = Life.LIVES
    found.look([str(directory)], waiting=False)
    return found


def test_a_writer_that_could_not_be_looked_at_is_neither_dead_nor_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files here say nothing about an engine there."""
    own = str(psutil.Process().pid)
    write(tmp_path, own, 1.0)
    found = source(tmp_path)

    def fail(_: psutil.Process) -> Mapping[procfs.FileId, str]:
        raise OSError(24, "Too many open files")

    found.life = Life.UNKNOWN  # where an unseen writer is retired
    with monkeypatch.context() as context:
        context.setattr(procfs, "mapped", fail)
        write(tmp_path, f"{own}", 2.0)
        fresh = source(tmp_path)
        fresh.life = Life.UNKNOWN
        assert [family.name for family in fresh.families()] == ["app_busy"]
    assert fresh.families() == ()  # this process does not map the file: not its writer


def test_looks_and_scrapes_from_two_threads_share_no_unlocked_state(tmp_path: Path) -> None:
    found = source(tmp_path)
    stop = threading.Event()
    errors: list[BaseException] = []

    def scrape() -> None:
        try:
            while not stop.is_set():
                found.families()
                dict(found.errors)
        except BaseException as error:  # noqa: BLE001, RUF100  # shown by the assertion
            errors.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        for number in range(300):
            write(tmp_path, f"w{number}", 1.0)
            found.life = Life.LIVES if number % 10 else Life.UNREACHABLE
            found.look([str(tmp_path)], waiting=True)
            sorted(found.names)
    finally:
        stop.set()
        thread.join()
    assert errors == []
