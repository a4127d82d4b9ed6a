"""The locks of the file discovery.

Three rules keep readers and writers apart:

- A file is dead when nobody locks it and its path still names it: a process that rewrites its
  record unlocks the old file only after the new one has taken its place.
- Processes write records, and remove dead ones, under a lock of the directory: no reader removes
  the file of a successor that has taken a dead process's number.
- Readers lock a record's file for a moment, and only with shared locks: they never keep a process
  from its own file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_AGAIN_SECONDS: Final = 0.01


def locked(fd: int) -> bool:
    """Return whether a process holds the file: shared locks are readers', who lock for a moment."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def named(path: str | Path, fd: int) -> bool:
    """Return whether `path` names the file that `fd` holds, and not a successor."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def write_locked(path: Path, content: bytes) -> int:
    """Put a new file with `content` at `path`; returns its descriptor, which holds its lock.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)  # of a process that was killed while it wrote
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
    """Hold the lock under which files of other processes are replaced and removed.

    Raises:
        OSError: the directory cannot be opened, or another process kept the lock for `seconds`.
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
            time.sleep(_AGAIN_SECONDS)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child of fork may hold a copy of `fd`
    finally:
        os.close(fd)
