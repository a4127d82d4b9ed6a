"""Files are open while their directory is in use, and in no other process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from bytes_of_files import content, entry, key
from pages import values

from dynamometer.multiprocess import MultiProcessCollector, MultiprocessDirectory

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A directory of twenty files, each with `c_total 1`."""
    directory = tmp_path / "files"
    directory.mkdir()
    for number in range(20):
        path = directory / f"counter_{number}.db"
        path.write_bytes(content(entry(key("c", "c_total", {}), 1.0)))
    return directory


def count_open(directory: Path) -> int:
    """Return the number of descriptors of this process that are files of a directory."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(link).startswith(f"{directory}/")
        except FileNotFoundError:  # the listing's own
            continue
    return count


def test_a_directory_that_is_dropped_closes_its_files(written: Path) -> None:
    directory = MultiprocessDirectory(written)
    directory.render()
    assert count_open(written) == 20
    del directory
    assert count_open(written) == 0


def test_a_directory_that_is_dropped_within_a_reading_closes_its_files(written: Path) -> None:
    directory = MultiprocessDirectory(written)
    steps = directory.refresh_steps(seconds=0)
    next(steps, None)
    del directory, steps
    gc.collect()
    assert count_open(written) == 0


def test_a_directory_is_open_for_the_time_of_its_context(written: Path) -> None:
    with MultiprocessDirectory(written) as directory:
        assert values(directory.render()) == {"c_total": 20.0}
        assert count_open(written) == 20
    assert count_open(written) == 0
    assert [family.name for family in directory.current_families()] == ["c"]
    with pytest.raises(ValueError, match="closed"):
        directory.families()


def test_a_context_that_fails_closes_the_files_and_raises(written: Path) -> None:
    def fail() -> None:
        with MultiprocessDirectory(written) as directory:
            directory.render()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert count_open(written) == 0


def _count_and_read(answers: Connection, path: Path, directory: MultiprocessDirectory) -> None:
    before = count_open(path)
    shown = values(directory.render())
    answers.send((before, shown, count_open(path)))


@pytest.mark.parametrize("held", ["held open", "not held open"])
def test_a_child_of_fork_has_no_file_of_its_parents_open_and_reads_for_itself(
    held: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if held == "not held open":
        monkeypatch.setattr("dynamometer.multiprocess.open_files._MAX_HELD_OPEN", 0)
    directory = MultiprocessDirectory(written)
    directory.render()
    others = 20 if held == "held open" else 0
    assert count_open(written) == others
    receiving, sending = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_count_and_read, args=(sending, written, directory))
    child.start()
    assert receiving.recv() == (0, {"c_total": 20.0}, others)
    child.join()
    assert child.exitcode == 0
    (written / "counter_20.db").write_bytes(content(entry(key("c", "c_total", {}), 2.0)))
    assert values(directory.render()) == {"c_total": 22.0}


def _count_and_collect(answers: Connection, path: Path) -> None:
    before = count_open(path)
    (metric,) = MultiProcessCollector(None, str(path)).collect()
    answers.send((before, metric.samples[0].value))


def test_a_child_of_fork_has_no_file_of_its_parents_collector(written: Path) -> None:
    collector = MultiProcessCollector(None, str(written))
    assert len(list(collector.collect())) == 1
    receiving, sending = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_count_and_collect, args=(sending, written))
    child.start()
    assert receiving.recv() == (0, 20.0)
    child.join()


def test_children_that_are_forked_within_a_reading_have_no_file_open(
    written: Path,
) -> None:
    """Another thread reads all the time, and holds the lock of the directory."""
    directory = MultiprocessDirectory(written)
    directory.render()
    ending = threading.Event()

    def read() -> None:
        while not ending.is_set():
            directory.families()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                os._exit(min(count_open(written), 1))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        ending.set()
        reader.join()


def test_a_directory_that_its_parent_closed_stays_closed_in_a_child(written: Path) -> None:
    directory = MultiprocessDirectory(written)
    directory.close()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            directory.families()
        except ValueError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
