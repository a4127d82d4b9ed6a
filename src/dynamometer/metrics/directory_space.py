"""The bytes that an engine's metrics files use, and that their file system still has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

# The files are counted at most so often: a directory may have thousands of them.
_SECONDS: Final = 10.0
_BLOCK_BYTES: Final = 512


@dataclass(frozen=True)
class Space:
    """The space of some directories.

    Attributes:
        used: the bytes that all files in the directories occupy.
        available: the bytes that a process may still write, in the fullest of the file systems.
    """

    used: int
    available: int


class DirectorySpace:
    """The space of an engine's directories; one thread measures, and a file system may block it."""

    def __init__(
        self, paths: Callable[[], Sequence[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Store the arguments; nothing is measured yet.

        Args:
            paths: returns the directories.
            clock: returns a time in seconds.
        """
        self._paths = paths
        self._clock = clock
        self._measured: tuple[float, Sequence[str], Space | None] = (float("-inf"), (), None)

    def measure(self) -> Space | None:
        """Return the space, at most ten seconds old; None without a directory that exists."""
        paths, now = tuple(self._paths()), self._clock()
        measured_at, measured, space = self._measured
        if measured != paths or now - measured_at >= _SECONDS:
            space = _measure(paths)
            self._measured = (now, paths, space)
        return space


def _measure(paths: Sequence[str]) -> Space | None:
    used, available = 0, []
    for path in paths:
        with suppress(OSError):  # the engine removes its directory, or creates it later
            system = os.statvfs(path)
            available.append(system.f_bavail * system.f_frsize)
            used += sum(_file_bytes(path))
    return Space(used, min(available)) if available else None


def _file_bytes(path: str) -> Iterator[int]:
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    yield from _file_bytes(entry.path)
                else:
                    yield entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
