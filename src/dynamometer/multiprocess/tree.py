"""The files below some directories; a directory is listed again only when it changed.

A directory's modification time changes when an entry is added, removed or replaced. Its clock is
coarse: a directory that changed within the last tick can change again without a later time, so
that the next reading lists it again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from dynamometer.multiprocess.faults import FileFault, from_os_error
from dynamometer.multiprocess.file_format import SUFFIX

# A kernel tick is at most 10 ms. A file system that stores whole seconds has zero nanoseconds.
_FINE_TICK_NS: Final = 100_000_000
_COARSE_TICK_NS: Final = 2_000_000_000
_SECOND_NS: Final = 1_000_000_000
# The process or the machine has no descriptor or memory left; the directory may be valid.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class FileSource(Protocol):
    """Finds the files of a reader."""

    @property
    def files(self) -> Mapping[str, int]:
        """The inode number of each file, by path, in the order in which they are read."""

    @property
    def faults(self) -> Sequence[tuple[str, FileFault]]:
        """The directories that could not be listed, by path."""

    def refresh(self) -> bool:
        """Find the files again; return whether any may have been added, removed or replaced."""


@dataclass(slots=True)
class _Directory:
    """The listing of a directory.

    Attributes:
        identity: device, inode number and modification time when the directory was listed.
        settled: whether the directory's next change has another modification time.
        files: the inode number of each file, by path.
        directories: the paths of the subdirectories.
    """

    identity: tuple[int, int, int]
    settled: bool
    files: dict[str, int]
    directories: list[str] = field(default_factory=list)


class FileTree:
    """The files whose name ends with `.db`, in directories and the trees below them.

    Links to directories and names that begin with a dot are ignored. Where descriptors or memory
    are exhausted, the known files of a directory stay.

    Attributes:
        paths: the directories, which may be replaced by others.
    """

    def __init__(self, *paths: str, recursive: bool = True) -> None:
        """Prepare to list directories, which may be created later."""
        self.paths: Sequence[str] = paths
        self._recursive = recursive
        self._known: dict[str, _Directory] = {}
        self._files: dict[str, int] = {}
        self.faults: list[tuple[str, FileFault]] = []

    @property
    def files(self) -> Mapping[str, int]:
        """The inode number of each file, by path, in the order of the paths."""
        return self._files

    def refresh(self) -> bool:
        """List the changed directories; return whether any was listed, or has disappeared."""
        self.faults = []
        known, self._known = self._known, {}
        listed = False
        for path in self._walk(known):
            listed = listed or self._known[path] is not known.get(path)
        if listed or known.keys() != self._known.keys():
            found = [item for directory in self._known.values() for item in directory.files.items()]
            self._files = dict(sorted(found))
            return True
        return False

    def _walk(self, known: Mapping[str, _Directory]) -> Iterator[str]:
        waiting = list(self.paths)
        while waiting:
            path = waiting.pop()
            if path in self._known:
                continue
            try:
                self._known[path] = directory = self._list(path, known.get(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                self.faults.append((path, from_os_error(error)))
                before = known.get(path)
                if before is None or error.errno not in _EXHAUSTED:
                    continue
                self._known[path] = directory = before
            yield path
            if self._recursive:
                waiting.extend(directory.directories)

    def _list(self, path: str, known: _Directory | None) -> _Directory:
        status = os.stat(path)  # noqa: PTH116  # once a reading, and pathlib takes three times as long
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
        if known is not None and known.settled and known.identity == identity:
            return known
        coarse = status.st_mtime_ns % _SECOND_NS == 0
        age = time.time_ns() - status.st_mtime_ns
        directory = _Directory(identity, age > (_COARSE_TICK_NS if coarse else _FINE_TICK_NS), {})
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith(SUFFIX):
                    directory.files[entry.path] = entry.inode()
                elif entry.is_dir(follow_symlinks=False):
                    directory.directories.append(entry.path)
        return directory


class FileList:
    """A given list of files, read in its order; a file that is listed twice counts twice."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = _distinct(paths)
        self.files: Mapping[str, int] = {}
        self.faults: Sequence[tuple[str, FileFault]] = ()

    def refresh(self) -> bool:
        """Find the files again; return True, because any may have been replaced."""
        found = {}
        for path in self._paths:
            with suppress(OSError):
                found[path] = Path(path).stat().st_ino
        self.files = found
        return True


def _distinct(paths: Iterable[str]) -> Sequence[str]:
    """Return different paths: a file that is listed again gets one more slash."""
    distinct: dict[str, None] = {}
    for path in paths:
        spelled = path
        while spelled in distinct:
            head, slash, name = spelled.rpartition("/")
            spelled = f"{head}{slash or './'}/{name}"
        distinct[spelled] = None
    return list(distinct)
