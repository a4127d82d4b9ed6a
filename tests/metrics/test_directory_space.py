"""The space that metrics files use and have left."""

from __future__ import annotations

import os
from pathlib import Path

from dynamometer.metrics.directory_space import DirectorySpace, Space


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(b"x" * size)
        file.flush()
        os.fsync(file.fileno())
    return path


def measured(space: DirectorySpace) -> Space:
    found = space.measure()
    assert found is not None
    return found


def test_files_in_subdirectories_count_by_their_blocks(tmp_path: Path) -> None:
    write(tmp_path / "counter_1.db", 8192)
    write(tmp_path / "sub" / "counter_2.db", 8192)
    with (tmp_path / "sparse.db").open("wb") as file:
        file.truncate(1 << 30)
    found = measured(DirectorySpace(lambda: [str(tmp_path)]))
    assert 16384 <= found.used < 1 << 20
    system = os.statvfs(tmp_path)
    assert abs(found.available - system.f_bavail * system.f_frsize) < 1 << 30


def test_the_fullest_file_system_counts(tmp_path: Path) -> None:
    both = measured(DirectorySpace(lambda: [str(tmp_path), "/dev/shm"])).available
    assert both <= measured(DirectorySpace(lambda: ["/dev/shm"])).available + (1 << 26)


def test_a_missing_directory_has_no_space(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert DirectorySpace(lambda: [missing]).measure() is None
    assert DirectorySpace(list).measure() is None
    assert DirectorySpace(lambda: [missing, str(tmp_path)]).measure() is not None


def test_files_are_counted_every_ten_seconds(tmp_path: Path) -> None:
    now = [100.0]
    paths = [str(tmp_path)]
    space = DirectorySpace(lambda: paths, clock=lambda: now[0])
    before = measured(space).used
    write(tmp_path / "counter_1.db", 8192)
    now[0] += 9.9
    assert measured(space).used == before
    now[0] += 0.1
    assert measured(space).used >= before + 8192
    paths = [str(tmp_path / "other")]
    assert space.measure() is None
