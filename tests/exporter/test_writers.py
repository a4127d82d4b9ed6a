"""The writers of files, alive or not: tables of the evidence about an engine, without engines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from dynamometer.exporter import procfs
from dynamometer.exporter.writers import Change, Liveness, Writers

ALIVE, ENDED = Liveness.ALIVE, Liveness.ENDED
UNREACHABLE, UNKNOWN = Liveness.UNREACHABLE, Liveness.UNKNOWN

# Steps: the liveness of the engine, and the writers that have files and are not retired.
# Then: the writers that the last step retires, and those that it resumes.
CASES: Mapping[str, tuple[Sequence[tuple[Liveness, str]], str, str]] = {
    "invisible writers live while the engine does": ([(ALIVE, "ab")], "", ""),
    "end with it": ([(ALIVE, "ab"), (UNREACHABLE, "ab")], "ab", ""),
    "end with its first process": ([(ALIVE, "ab"), (ENDED, "ab")], "ab", ""),
    "return with it": (
        [(ALIVE, "ab"), (UNREACHABLE, "ab"), (UNREACHABLE, ""), (ALIVE, "")],
        "",
        "ab",
    ),
    "stay ended if another engine has new files": (
        [(ALIVE, "ab"), (UNREACHABLE, "ab"), (ALIVE, "c")],
        "",
        "",
    ),
    "stay ended if the new files appeared before its URL answered": (
        [(ALIVE, "a"), (ENDED, "a"), (ENDED, "c"), (ALIVE, "")],
        "",
        "c",
    ),
    "stay ended if they wrote after the end, beside new files": (
        [(ALIVE, "a"), (ENDED, "a"), (ENDED, "ac"), (ALIVE, "")],
        "",
        "c",
    ),
    "return alone if they alone wrote after the end": (
        [(ALIVE, "ab"), (ENDED, "ab"), (ENDED, "a"), (ALIVE, "")],
        "",
        "a",
    ),
    "end again when new files appear soon after the return": (
        [(ALIVE, "a"), (ENDED, "a"), (ALIVE, ""), (ALIVE, "ac")],
        "a",
        "",
    ),
    "count as ended without any evidence": ([(UNKNOWN, "a")], "a", ""),
    "live again when their files change": (
        [(UNKNOWN, "a"), (UNKNOWN, ""), (UNKNOWN, "a")],
        "",
        "",
    ),
    "of which one changes its files, live alone": (
        [(UNKNOWN, "ab"), (UNKNOWN, ""), (UNKNOWN, "a"), (UNKNOWN, "ab")],
        "",
        "",
    ),
    "of new files without evidence count as ended": (
        [(UNKNOWN, "a"), (UNKNOWN, ""), (UNKNOWN, "a"), (UNKNOWN, "ac")],
        "c",
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_invisible_writers(case: str) -> None:
    steps, retired, resumed = CASES[case]
    writers = Writers()
    change = Change()
    for liveness, names in steps:
        change = writers.update({name: [f"/none/{name}.db"] for name in names}, list, liveness)
    assert ("".join(sorted(change.retire)), "".join(sorted(change.resume))) == (retired, resumed)


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Path]:
    """A file that this process maps."""
    path = tmp_path / "gauge_livesum_1.db"
    file = MmapedDict(str(path))
    file.write_value(mmap_key("app_busy", "app_busy", [], [], "Busy."), 1.0, 0.0)
    yield path
    file.close()


def alive(name: str, path: Path, members: Sequence[psutil.Process] = ()) -> bool:
    """A visible process counts as the writer `name` of the file, or does not."""
    writers = Writers()
    writers.update({name: [str(path)]}, lambda: members, UNKNOWN)
    return name in writers.alive


def test_the_process_that_has_the_pid_and_maps_the_file_is_its_writer(mapped: Path) -> None:
    assert alive(str(os.getpid()), mapped)


def test_a_process_with_the_pid_that_does_not_map_the_file_is_not_its_writer(
    mapped: Path, tmp_path: Path
) -> None:
    """The pid may belong to another pid namespace, or be in use again."""
    (tmp_path / "other.db").touch()
    assert not alive(str(os.getpid()), tmp_path / "other.db")
    assert not alive(str(os.getppid()), mapped)


def test_the_member_that_maps_the_file_is_the_writer_of_a_name_that_is_not_a_pid(
    mapped: Path,
) -> None:
    assert alive("worker-a", mapped, [psutil.Process()])
    assert not alive("worker-a", mapped)


@pytest.mark.parametrize("name", ["", "-1", "4_7", "\uff14", "9" * 30])
def test_an_odd_name_has_no_visible_writer(name: str, mapped: Path) -> None:
    assert not alive(name, mapped)


def test_a_process_whose_maps_may_not_be_read_does_not_count_as_the_writer(
    mapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the file and the start of the process are not evidence."""

    def deny(_: psutil.Process) -> Mapping[procfs.FileId, str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(procfs, "mapped_files", deny)
    assert not alive(str(os.getpid()), mapped)
    writers = Writers()
    files = {str(os.getpid()): [str(mapped)]}
    assert writers.update(files, list, UNKNOWN).retire == files.keys()
    assert writers.update(files, list, UNKNOWN).retire == set()
    assert writers.still_writing == files.keys()


def test_a_writer_that_cannot_be_checked_for_want_of_descriptors_is_decided_later(
    mapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: psutil.Process) -> Mapping[procfs.FileId, str]:
        raise OSError(24, "Too many open files")

    own = str(os.getpid())
    writers = Writers()
    with monkeypatch.context() as context:
        context.setattr(procfs, "mapped_files", fail)
        assert writers.update({own: [str(mapped)]}, list, UNKNOWN) == Change()
        assert not writers.alive
    assert writers.update({own: [str(mapped)]}, list, UNKNOWN) == Change()
    assert own in writers.alive


def test_a_dead_pid_has_ended_where_another_pid_is_visible(mapped: Path) -> None:
    own, dead = str(os.getpid()), "4194303"
    assert not psutil.pid_exists(int(dead))
    files = {own: [str(mapped)], dead: ["/none.db"], "worker-a": ["/none.db"]}
    assert Writers().update(files, list, ALIVE).retire == {dead}
    assert Writers().update({dead: ["/none.db"]}, list, ALIVE).retire == set()
