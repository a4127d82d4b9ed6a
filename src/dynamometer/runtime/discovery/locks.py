"""The locks of the file discovery.

Three rules coordinate readers and writers:

- A file belongs to a dead process if no process locks the file and the path still names the file: a
  process that rewrites its record unlocks the old file only after the new file has replaced it.
- Processes write records, and remove records of dead processes, under a lock of the directory: no
  reader removes the file of a new process that has the number of a dead process.
- Readers lock a record's file only for a moment and only with shared locks: a reader never blocks
  the process that owns the file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_RETRY_SECONDS: Final = 0.01


def locked(fd: int) -> bool:
    """Return whether the owner of the file holds its exclusive lock; readers use shared locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def named(path: str | Path, fd: int) -> bool:
    """Return whether `path` names the file of `fd`, not a newer file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def write_locked(path: Path, content: bytes) -> int:
    """Write a new, locked file with `content`, rename it to `path`, and return its descriptor.

    Raises:
        OSError: The file cannot be written.
    """
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)  # from a process that was killed while it wrote the file
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        fresh.replace(path)
    except OSError:
        os.close(fd)
        fresh.unlink(missing_ok=True)
        raise
    return fd


@contextmanager
def directory_lock(directory: Path, *, seconds: float) -> Iterator[None]:
    """Hold the lock that protects the replacement and removal of other processes' files.

    Raises:
        OSError: The directory cannot be opened, or another process held the lock for `seconds`.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_SECONDS)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child of fork may hold a copy of `fd`
    finally:
        os.close(fd)
