"""Discovery on one machine: a file a process, alive while its lock is held.

`flock` is the truth: the kernel drops a process's locks the moment that it ends, so a killed
worker is gone at once and its file, unlocked, is nobody's: whoever meets it removes it. A
record is written and locked under a name that readers pass over, then renamed into place;
no reader ever sees half of one, or one without its lock. Needs a file system of this machine
(flock over NFS is another promise).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from dynamometer.errors import DirectoryError, DiscoveryError
from dynamometer.process import directories
from dynamometer.process.tasks import keeping_on
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import Record

logger = logging.getLogger(__name__)

# Locks have no events. A look at one file costs some 10 µs.
POLL_SECONDS: Final = 0.1
KEEP_SECONDS: Final = 1.0
_NAME: Final = re.compile(r"[0-9a-f]{16}\.json")


class FileDiscovery:
    """Instances registered in `directory`; by default one of this user's own."""

    def __init__(self, directory: Path | None = None) -> None:
        """Make the directory where it is missing.

        Raises:
            DiscoveryError: it cannot be used; says why.
        """
        try:
            root = directory or directories.runtime() / "discovery"
            self.directory = directories.private(directories.private(root) / "instances")
        except DirectoryError as error:
            raise DiscoveryError(f"discovery: {error} (DYN_FILE_KV)") from None
        self._reported: set[str] = set()

    @asynccontextmanager
    async def register(self, record: Record) -> AsyncIterator[FileRegistration]:
        """See `Discovery.register`."""
        registration = FileRegistration(self.directory / f"{hexadecimal(record.id)}.json")
        try:
            await registration.update(record)
            async with keeping_on(registration.keep, name="registration"):
                yield registration
        finally:
            registration.withdraw()

    async def watch(self) -> AsyncIterator[frozenset[Record]]:
        """See `Discovery.watch`."""
        last: frozenset[Record] | None = None
        while True:
            try:
                now = await self.records()
            except DiscoveryError:
                pass  # said by records(); the last set stands
            else:
                if now != last:
                    last = now
                    yield now
            await asyncio.sleep(POLL_SECONDS)

    async def records(self) -> frozenset[Record]:
        """See `Discovery.records`.

        Raises:
            DiscoveryError: the directory cannot be listed.
        """
        try:
            names = [n for n in os.listdir(self.directory) if _NAME.fullmatch(n)]  # noqa: PTH208
        except OSError as error:
            self._report("directory", f"{self.directory}: {error.strerror}")
            raise DiscoveryError(f"discovery: {self.directory}: {error.strerror}") from None
        found = (self._read(self.directory / name) for name in names)
        return frozenset(record for record in found if record is not None)

    def _read(self, path: Path) -> Record | None:
        """The record of a live process; a dead one's file is removed."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None  # withdrawn since the listing
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DiscoveryError("is no file")
            if _unlocked(fd):
                _unlink_if_same(path, fd)
                return None
            return Record.from_json(os.pread(fd, os.fstat(fd).st_size, 0))
        except (DiscoveryError, OSError) as error:
            self._report(path.name, f"{path} {error}")
            return None
        finally:
            os.close(fd)

    def _report(self, key: str, message: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            logger.warning("discovery: %s", message)


class FileRegistration:
    """A record's file, held by a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._record: Record | None = None

    async def update(self, record: Record) -> None:
        """See `Registration.update`."""
        self._record = record  # `keep` goes on trying where this fails
        self._write(record)

    async def keep(self) -> None:
        """Put the record back whenever its file, or the whole directory, was removed."""
        lost = False
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            if self._record is None or self._is_there():
                continue
            try:
                directories.private(self._path.parent.parent)
                directories.private(self._path.parent)
                self._write(self._record)
            except (DirectoryError, DiscoveryError) as error:
                if not lost:
                    logger.warning("discovery: this process cannot be found: %s", error)
                lost = True
            else:
                lost = False
                logger.warning("discovery: %s was gone, and is there again", self._path)

    def _is_there(self) -> bool:
        try:
            return self._fd is not None and os.path.samestat(self._path.lstat(), os.fstat(self._fd))
        except OSError:
            return False

    def _write(self, record: Record) -> None:
        fresh = self._path.with_suffix(".new")
        fd: int | None = None
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(fd, "wb", closefd=False) as file:
                file.write(record.to_json())
            fresh.replace(self._path)
        except OSError as error:
            if fd is not None:
                os.close(fd)
                fresh.unlink(missing_ok=True)
            raise DiscoveryError(f"discovery: cannot write {fresh}: {error.strerror}") from None
        self._close()
        self._fd = fd

    def withdraw(self) -> None:
        """Remove the file, then the lock."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                _unlink_if_same(self._path, self._fd)
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _unlocked(fd: int) -> bool:
    """Whether nobody holds the file: a shared lock, which readers may hold together."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlink_if_same(path: Path, fd: int) -> None:
    """Remove `path` where it is still the file that `fd` holds, not a successor."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), os.fstat(fd)):
            path.unlink()
