"""The last records of processes that ended without withdrawing them, in the file discovery.

The file of such a process is renamed from `ID.json` to `ID.vanished`: by the process itself if it
ended with an error, otherwise by the first reader that finds the file unlocked. The modification
time of the renamed file is the time of the end, or of its detection. Readers remove the file after
`VANISHED_SECONDS`, and a process that has the id again removes it at its start. A process that has
the page's address removes it, too: otherwise the address would be listed again after the clean end
of the new process.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from dynamometer.errors import DiscoveryError
from dynamometer.runtime.discovery.interface import VANISHED_SECONDS
from dynamometer.runtime.discovery.locks import directory_lock, locked
from dynamometer.runtime.record import MAX_BYTES, Record

SUFFIX: Final = ".vanished"
_NAME: Final = re.compile(r"[0-9a-f]{16}\.vanished")
_ANY_NAME: Final = re.compile(r"[0-9a-f]{16}\.(?:json|vanished)")

_Stamp = tuple[int, int, int]


def mark(path: Path, fd: int) -> None:
    """Rename the file of a process that has ended, or ends now.

    Args:
        path: the path of the record.
        fd: the descriptor of the file at `path`. The caller has locked the file or the directory.

    Raises:
        OSError: The file cannot be renamed.
    """
    os.utime(fd)
    path.replace(path.with_suffix(SUFFIX))


def forget_at(directory: Path, address: str) -> None:
    """Remove the files of all ended processes whose page had `address`.

    This includes a file that no reader has renamed yet. The caller has locked the directory. A file
    that cannot be read or removed stays.
    """
    for path in directory.iterdir():
        if _ANY_NAME.fullmatch(path.name):
            with suppress(OSError, DiscoveryError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if not locked(fd) and _page_address(fd) == address:
                        path.unlink()
                finally:
                    os.close(fd)


def _page_address(fd: int) -> str | None:
    return Record.from_json(os.pread(fd, MAX_BYTES + 1, 0)).page_address


class VanishedFiles:
    """The renamed files of a directory. One thread at a time may call `read`."""

    def __init__(self, directory: Path) -> None:
        """Store the directory."""
        self._directory = directory
        self._parsed: dict[str, tuple[_Stamp, Record | None]] = {}

    def read(self, names: Iterable[str]) -> tuple[Record, ...]:
        """Return the records of the renamed files, in the order of the ends.

        Args:
            names: names of files, which may be missing; other names are ignored.
        """
        found: dict[str, tuple[_Stamp, Record | None]] = {}
        ends: list[tuple[float, int, Record]] = []
        for name in filter(_NAME.fullmatch, names):
            path = self._directory / name
            try:
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                if _expired(status):
                    self._remove(path)
                    continue
                found[name] = self._parse(path, status)
            except OSError:  # removed since the directory was listed, or unreadable
                continue
            record = found[name][1]
            if record is not None:
                ends.append((status.st_mtime, record.id, record))
        self._parsed = found
        return tuple(record for _, _, record in sorted(ends, key=lambda end: end[:2]))

    def _parse(self, path: Path, status: os.stat_result) -> tuple[_Stamp, Record | None]:
        """Return the record in a file, which is parsed once; None if it is invalid."""
        stamp = (status.st_ino, status.st_ctime_ns, status.st_size)
        known = self._parsed.get(path.name)
        if known is not None and known[0] == stamp:
            return known
        with path.open("rb") as file:
            try:
                return stamp, Record.from_json(file.read(MAX_BYTES + 1))
            except DiscoveryError:  # reported while the process lived
                return stamp, None

    def _remove(self, path: Path) -> None:
        """Remove a file, unless another process with the same id has vanished since."""
        with suppress(OSError), directory_lock(self._directory, seconds=0):
            if _expired(path.lstat()):
                path.unlink()


def _expired(status: os.stat_result) -> bool:
    """Return whether the end is too long ago, or lies ahead of a clock that was set back."""
    return abs(time.time() - status.st_mtime) > VANISHED_SECONDS
