"""Find the files in /dev/shm that processes map, and remove the files after the processes ended."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

DIRECTORY: Final = Path("/dev/shm")  # noqa: S108  # Linux keeps POSIX shared memory there
# A line of /proc/PID/maps: "7f..-7f.. rw-s 00000000 00:1a 42    /dev/shm/sem.x". The name may be
# outdated after a rename; the inode identifies the file.
_MAPPING: Final = re.compile(r" (?P<inode>\d+) +/dev/shm/")


class SharedFile(NamedTuple):
    """A file in /dev/shm: its inode, and its name at the last check."""

    inode: int
    name: str


def mapped_by(pids: Iterable[int]) -> frozenset[SharedFile]:
    """Return the files of this user in /dev/shm that one of the processes maps."""
    inodes = set().union(*(_mapped_inodes(pid) for pid in pids))
    return frozenset(file for file in _list_files() if file.inode in inodes)


def remove_unmapped(files: Iterable[SharedFile]) -> int:
    """Remove those of `files` that still exist and that no living process maps.

    Returns:
        The number of removed files.
    """
    existing = set(files) & set(_list_files())
    if not existing:
        return 0
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208
    mapped = set().union(*(_mapped_inodes(pid) for pid in pids))
    removed = 0
    for file in existing:
        if file.inode not in mapped:
            with contextlib.suppress(OSError):
                (DIRECTORY / Path(file.name).name).unlink()
                removed += 1
    return removed


def _mapped_inodes(pid: int) -> set[int]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()  # the process ended, or belongs to another user
    return {int(match["inode"]) for match in _MAPPING.finditer(maps)}


def _list_files() -> list[SharedFile]:
    """Return the files of this user in /dev/shm."""
    files = []
    with contextlib.suppress(OSError), os.scandir(DIRECTORY) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.geteuid() and entry.is_file(follow_symlinks=False):
                    files.append(SharedFile(status.st_ino, entry.name))
    return files
