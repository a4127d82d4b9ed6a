"""Directories that a process locks while it runs, and that the next process removes after a kill.

The kernel releases the lock when a process ends for any reason, so a directory without a lock
belongs to a killed process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dynamometer.errors import DirectoryError
from dynamometer.process import private_directories
from dynamometer.process.descriptors import Descriptor


@contextmanager
def locked_directory(
    base: Path,
    name: str,
    *,
    leftovers: re.Pattern[str],
    clear: Callable[[Path], None],
    in_use: str = "",
) -> Iterator[Path]:
    """Create and lock a directory, and remove it at the end of the context.

    Args:
        base: the parent, which is removed when it is empty.
        name: the name of the directory.
        leftovers: the names of directories of the same kind.
        clear: called with each such directory of a killed process, before it is removed.
        in_use: the message if a live process has locked the directory; empty for a general one.

    Raises:
        DirectoryError: The directory cannot be created, or belongs to a live process.
    """
    path = base / name
    with ExitStack() as stack:
        try:
            # A new directory is not locked yet, so only one process at a time creates a directory.
            with locked(base, wait=True):
                _clear_leftovers(base, leftovers, clear)
                stack.callback(_remove_if_empty, base)
                private_directories.create(path)
                stack.enter_context(locked(path, wait=False))
        except BlockingIOError:
            raise DirectoryError(in_use or f"{path} belongs to a live process") from None
        except OSError as error:
            raise DirectoryError(f"cannot create the directory {path}: {error.strerror}") from None
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def clear_leftovers(base: Path, leftovers: re.Pattern[str], clear: Callable[[Path], None]) -> None:
    """Remove the directories of killed processes, without a directory for this process.

    Args:
        base: the parent, which is removed when it is empty.
        leftovers: the names of the directories.
        clear: called with each directory of a killed process, before it is removed.
    """
    # Another process that holds the lock removes the directories itself, or a later start does.
    with contextlib.suppress(OSError), locked(base, wait=False):
        _clear_leftovers(base, leftovers, clear)
        _remove_if_empty(base)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of the directory `path`, which is created if it is missing.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is false.
    """
    while True:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        lock = Descriptor(os.open(private_directories.create(path), flags))
        try:
            fcntl.flock(lock.number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Another process may have removed the directory before the lock was taken.
            if path.exists() and os.path.samestat(path.lstat(), os.fstat(lock.number)):
                yield
                return
        finally:
            lock.close()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of the directory `path`, which may be missing."""
    try:
        lock = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    try:
        fcntl.flock(lock.number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        lock.close()
    return False


def _clear_leftovers(base: Path, leftovers: re.Pattern[str], clear: Callable[[Path], None]) -> None:
    for path in base.iterdir():
        if leftovers.fullmatch(path.name):
            with contextlib.suppress(BlockingIOError, DirectoryError), locked(path, wait=False):
                clear(path)
                shutil.rmtree(path, ignore_errors=True)


def _remove_if_empty(base: Path) -> None:
    with contextlib.suppress(OSError):
        base.rmdir()  # fails while another process has a directory in it
