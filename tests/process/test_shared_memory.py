"""Files in /dev/shm, by the processes that map them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamometer.process.shared_memory import SharedFile, mapped_by, remove_unmapped


@pytest.fixture
def shared_file() -> Iterator[Path]:
    path = Path(f"/dev/shm/dynamometer-test-{os.getpid()}")
    path.write_bytes(b"x" * 4096)
    yield path
    path.unlink(missing_ok=True)


def test_shared_memory_is_known_by_who_maps_it_and_kept_while_someone_does(
    shared_file: Path,
) -> None:
    file = SharedFile(shared_file.stat().st_ino, shared_file.name)
    assert file not in mapped_by([os.getpid()])
    with shared_file.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096):
        assert file in mapped_by([os.getpid()])
        assert remove_unmapped([file]) == 0
        assert shared_file.exists()
    assert remove_unmapped([SharedFile(file.inode + 1, file.name)]) == 0
    assert shared_file.exists()
    assert remove_unmapped([file]) == 1
    assert not shared_file.exists()
