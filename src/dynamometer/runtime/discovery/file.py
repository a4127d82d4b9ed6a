"""Discovery on one machine: a file a process, alive while its lock is held.

`flock` is the truth: the kernel drops a process's locks the moment that it ends, so a killed
worker is gone at once, and the next reader removes its file. A record is written and locked
under a name that readers skip, then renamed into place: no reader ever sees a part of a record,
or a record without its lock. Needs a file system of this machine (flock over NFS has other rules).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from dynamometer.errors import DirectoryError, DiscoveryError
from dynamometer.process import directories
from dynamometer.process.background import BackgroundThread
from dynamometer.process.descriptors import close_in_child
from dynamometer.process.tasks import keeping_on
from dynamometer.runtime.discovery.locks import directory_lock, locked, named, write_locked
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import MAX_BYTES, Record

logger = logging.getLogger(__name__)

# Locks have no events. A look at one file costs some 10 µs; looks at all, a twentieth of a core.
POLL_SECONDS: Final = 0.1
_PAUSES: Final = 20
_LONGEST_PAUSE_SECONDS: Final = 0.5
KEEP_SECONDS: Final = 1.0
# Local files answer in microseconds; a directory that does not answer by then hangs.
READ_SECONDS: Final = 2.0
WRITE_SECONDS: Final = 5.0
_LOCK_SECONDS: Final = 4.0
_NAME: Final = re.compile(r"[0-9a-f]{16}\.json")

_Stamp = tuple[int, int, int]


class FileDiscovery:
    """Instances registered in `directory`; by default one of this user's own."""

    def __init__(self, directory: Path | None = None) -> None:
        """Make the directory where it is missing. May block: `discovery.connect` does not.

        Raises:
            DiscoveryError: it cannot be used; says why.
        """
        try:
            root = directory or directories.runtime() / "discovery"
            self.directory = directories.private(directories.private(root) / "instances")
        except DirectoryError as error:
            raise DiscoveryError(f"discovery: {error} (DYN_FILE_KV)") from None
        # All file-system work, so that a directory that hangs does not stop the event loop.
        self._thread = BackgroundThread("discovery")
        # These belong to that thread.
        self._parsed: dict[str, tuple[_Stamp, Record | None]] = {}
        self._faults: dict[str, str] = {}
        self._found: dict[str, Record | None] = {}
        self._last: frozenset[Record] = frozenset()
        # These belong to the event loop.
        self._reading: _Reading | None = None
        self._hung: _Reading | None = None

    @asynccontextmanager
    async def register(self, record: Record) -> AsyncIterator[FileRegistration]:
        """See `Discovery.register`."""
        registration = FileRegistration(self.directory / _file_name(record), self._thread)
        try:
            await registration.update(record)
            async with keeping_on(registration.keep, name="registration"):
                yield registration
        finally:
            await registration.withdraw()

    async def watch(self) -> AsyncIterator[frozenset[Record]]:
        """See `Discovery.watch`."""
        last: frozenset[Record] | None = None
        while True:
            begun, pause = time.monotonic(), POLL_SECONDS
            try:
                now = await self.records()
            except DiscoveryError:
                pass  # reported by records(); the last set stands
            else:
                pause = max(POLL_SECONDS, _PAUSES * (time.monotonic() - begun))
                if now is not last:
                    last = now
                    yield now
            await asyncio.sleep(min(pause, _LONGEST_PAUSE_SECONDS))

    async def records(self) -> frozenset[Record]:
        """See `Discovery.records`; the same object as before where nothing changed.

        Raises:
            DiscoveryError: the directory cannot be listed, or does not answer.
        """
        if self._hung is not None and not self._hung.future.done():
            raise DiscoveryError(f"discovery: {self.directory} does not answer")
        reading = self._reading
        # One that has begun may have passed a record that is there now.
        if reading is None or reading.begun or reading.future.done():
            reading = self._reading = _Reading()
            reading.future = self._thread.submit(reading.of(self._read_all))
        await asyncio.wait({reading.future}, timeout=READ_SECONDS)
        if not reading.future.done():
            if self._hung is None or self._hung.future.done():
                self._hung = reading
                logger.warning(
                    "discovery: %s does not answer: the last records stand", self.directory
                )
            raise DiscoveryError(f"discovery: {self.directory} does not answer")
        return reading.future.result()

    def _read_all(self) -> frozenset[Record]:
        try:
            listed = {name for name in os.listdir(self.directory) if _NAME.fullmatch(name)}  # noqa: PTH208
        except OSError as error:
            self._report("", f"{self.directory}: {error.strerror}")
            raise DiscoveryError(f"discovery: {self.directory}: {error.strerror}") from None
        self._faults.pop("", None)
        # A listing may pass over a name whose file is replaced at that moment.
        found = {name: self._read(name) for name in listed | self._parsed.keys()}
        for name in self._faults.keys() - listed:
            del self._faults[name]
        if found != self._found:
            self._found = found
            self._last = frozenset(record for record in found.values() if record is not None)
        return self._last

    def _read(self, name: str) -> Record | None:
        """Read the record of a live process, and remove a dead one's file."""
        path = f"{self.directory}/{name}"
        try:
            while True:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    status = os.fstat(fd)
                    if not stat.S_ISREG(status.st_mode):
                        raise DiscoveryError("is not a regular file")
                    if locked(fd):
                        return self._parse(name, fd, status)
                    if named(path, fd):
                        self._remove(path, fd)
                        break
                finally:
                    os.close(fd)
        except FileNotFoundError:
            pass  # withdrawn since the listing
        except DiscoveryError as error:
            self._report(name, f"{path} {error}")
        except OSError as error:
            # A fault of this process (no more descriptors): the record says nothing new.
            self._report(name, f"{path}: {error.strerror}")
            return self._parsed[name][1] if name in self._parsed else None
        self._parsed.pop(name, None)
        return None

    def _parse(self, name: str, fd: int, status: os.stat_result) -> Record | None:
        """Parse the file that `fd` holds, unless it is the one of the last reading."""
        # Records are never changed in place; but inode numbers are used again.
        stamp = (status.st_ino, status.st_ctime_ns, status.st_size)
        known = self._parsed.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            record: Record | None = _checked(os.pread(fd, MAX_BYTES + 1, 0), name)
            self._faults.pop(name, None)
        except DiscoveryError as error:
            self._report(name, f"{self.directory}/{name} {error}")
            record = None
        self._parsed[name] = (stamp, record)
        return record

    def _remove(self, path: str, fd: int) -> None:
        """Remove a dead process's file, unless its successor writes at this moment."""
        with contextlib.suppress(OSError), directory_lock(self.directory, seconds=0):
            if named(path, fd):
                os.unlink(path)  # noqa: PTH108

    def _report(self, name: str, message: str) -> None:
        """Log a fault once; again when it is another one."""
        if self._faults.get(name) != message:
            self._faults[name] = message
            logger.warning("discovery: %s", message)


class _Reading:
    """One reading of the directory, for all who ask before it begins."""

    future: asyncio.Future[frozenset[Record]]
    # Written by the discovery's thread, read by the event loop.
    begun = False

    def of(self, read: Callable[[], frozenset[Record]]) -> Callable[[], frozenset[Record]]:
        """Return `read`, noting when it begins."""

        def call() -> frozenset[Record]:
            self.begun = True
            return read()

        return call


class FileRegistration:
    """A record's file, held by a lock."""

    def __init__(self, path: Path, thread: BackgroundThread) -> None:
        """Write nothing yet.

        Args:
            path: of the record.
            thread: does all file-system work.
        """
        self._path = path
        self._thread = thread
        # These belong to that thread.
        self._fd: int | None = None
        self._record: Record | None = None
        self._missing = False
        close_in_child(self)  # which would keep its parent's record alive

    async def update(self, record: Record) -> None:
        """See `Registration.update`."""

        def write() -> None:
            self._record = record  # `keep` tries again where this fails
            self._write(record)

        writing = self._thread.submit(write)
        await asyncio.wait({writing}, timeout=WRITE_SECONDS)
        if not writing.done():
            raise DiscoveryError(f"discovery: {self._path.parent} does not answer")
        writing.result()

    async def keep(self) -> None:
        """Put the record back whenever its file, or the whole directory, was removed."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            await self._thread.submit(self._put_back)

    async def withdraw(self) -> None:
        """Remove the file, then the lock; a directory that hangs is left to the process's end."""
        await asyncio.wait({self._thread.submit(self._remove)}, timeout=READ_SECONDS)

    def _put_back(self) -> None:
        try:
            if self._record is None or (self._fd is not None and named(self._path, self._fd)):
                return
            directories.private(self._path.parent.parent)
            directories.private(self._path.parent)
            self._write(self._record)
        except (DirectoryError, DiscoveryError, OSError) as error:
            if not self._missing:
                logger.warning("discovery: this process cannot be found: %s", error)
            self._missing = True
        else:
            self._missing = False
            logger.warning("discovery: %s was removed, and is written again", self._path)

    def _write(self, record: Record) -> None:
        content = record.to_json()
        if len(content) > MAX_BYTES:
            raise DiscoveryError(
                f"discovery: the record has {len(content)} bytes; readers take {MAX_BYTES}"
            )
        try:
            with directory_lock(self._path.parent, seconds=_LOCK_SECONDS):
                self._check_vacant()
                fd = write_locked(self._path, content)
        except OSError as error:
            raise DiscoveryError(
                f"discovery: cannot write {self._path}: {error.strerror}"
            ) from None
        self._close()
        self._fd = fd

    def _check_vacant(self) -> None:
        """Check that no other live process has the path.

        Raises:
            DiscoveryError: one has it.
        """
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            own = self._fd is not None and os.path.samestat(os.fstat(fd), os.fstat(self._fd))
            if not own and locked(fd):
                raise DiscoveryError(
                    f"discovery: {self._path} belongs to a live process: two processes cannot "
                    f"have the same instance id"
                )
        finally:
            os.close(fd)

    def _remove(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                if named(self._path, self._fd):
                    self._path.unlink()
        self.close()

    def close(self) -> None:
        """Close the file, and write it no more."""
        self._record = None
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _checked(content: bytes, name: str) -> Record:
    """Read the record of the file of that name.

    Raises:
        DiscoveryError: it is not a valid record, or another process's.
    """
    record = Record.from_json(content)
    if name != _file_name(record):
        raise DiscoveryError(f"is not a valid record: its id is {record.id}, not the file name's")
    return record


def _file_name(record: Record) -> str:
    return f"{hexadecimal(record.id)}.json"
