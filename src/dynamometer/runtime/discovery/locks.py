"""The locks of the file discovery.

Three rules coordinate readers and writers:

- A file belongs to a dead process if no process has locked the file and the file is still at its
  path. A process that rewrites its record unlocks the old file only after the new file has replaced
  it at the path.
- A process locks the directory while it writes a record or renames the record of a dead process: no
  reader renames the file of a new process that has the id of a dead process.
- A reader locks a file only for a moment and only with a shared lock, so that it never blocks the
  process that owns the file.
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
    """Return whether the owner of the file has an exclusive lock on it.

    If not, `fd` has a shared lock until it is closed.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def same_file(path: str | Path, fd: int) -> bool:
    """Return whether the file at `path` is the file of `fd`, not a newer file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def write_locked(path: Path, content: bytes) -> int:
    """Write a new, locked file with `content`, rename it to `path`, and return its descriptor.

    Raises:
        OSError: The file cannot be written.
    """
    new_file = path.with_suffix(".new")
    new_file.unlink(missing_ok=True)  # left by a process that was killed while it wrote the file
    fd = os.open(new_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        new_file.replace(path)
    except OSError:
        os.close(fd)
        new_file.unlink(missing_ok=True)
        raise
    return fd


@contextmanager
def directory_lock(directory: Path, *, seconds: float) -> Iterator[None]:
    """Lock `directory` while its files are replaced or removed.

    Raises:
        OSError: The directory cannot be opened, or was locked by another process for `seconds`.
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
