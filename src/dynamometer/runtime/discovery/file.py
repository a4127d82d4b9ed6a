"""Discovery on one machine: one locked file per process.

A process is alive while it holds the `flock` of its file. The kernel releases the lock when the
process ends, so a killed worker is not live at once, and the next reader renames its file
(`vanished`). A process that ends cleanly removes its file.

A process writes and locks its record under a temporary name that readers ignore, then renames the
file: no reader sees a partial record, or a record that is not locked yet. The directory must be on
a local file system, because `flock` has other rules over NFS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from dynamometer.errors import DirectoryError, DiscoveryError
from dynamometer.process import private_directories
from dynamometer.process.background import BackgroundThread
from dynamometer.process.descriptors import close_in_child
from dynamometer.process.tasks import restarting
from dynamometer.runtime.discovery.interface import Processes
from dynamometer.runtime.discovery.locks import directory_lock, locked, same_file, write_locked
from dynamometer.runtime.discovery.vanished import SUFFIX, VanishedFiles, forget_at, mark
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import MAX_BYTES, Record

logger = logging.getLogger(__name__)

# The kernel sends no event when a lock is released, so readers poll. To check one file takes about
# 10 µs. A longer reading is followed by a longer pause: polling takes at most 5% of a core.
POLL_SECONDS: Final = 0.25
_PAUSE_FACTOR: Final = 20
_LONGEST_PAUSE_SECONDS: Final = 0.5
KEEP_SECONDS: Final = 1.0
# A local directory answers in microseconds; one that exceeds these deadlines hangs.
READ_SECONDS: Final = 2.0
WRITE_SECONDS: Final = 5.0
_LOCK_SECONDS: Final = 4.0
# Readers that find the same dead process wait for each other.
_MARK_SECONDS: Final = 0.05
_NAME: Final = re.compile(r"[0-9a-f]{16}\.json")

_Stamp = tuple[int, int, int]


class FileDiscovery:
    """The file discovery, whose registry is a directory.

    Attributes:
        directory: the directory of the records.
        fault: see `Discovery.fault`.
        restored_at: see `Discovery.restored_at`.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Create the directory if it is missing; `connect` runs this blocking call in a thread.

        Args:
            directory: the directory of the registry; None for the default of this user.

        Raises:
            DiscoveryError: The directory cannot be used; the message gives the reason.
        """
        try:
            root = directory or private_directories.create_runtime() / "discovery"
            self.directory = private_directories.create(
                private_directories.create(root) / "instances"
            )
        except DirectoryError as error:
            raise DiscoveryError(f"discovery: {error} (DYN_FILE_KV)") from None
        # All file-system calls run in this thread, because a call may hang.
        self._thread = BackgroundThread("discovery")
        # The thread owns these attributes.
        self._parsed: dict[str, tuple[_Stamp, Record | None]] = {}
        self._faults: dict[str, str] = {}
        self._current: dict[str, Record | None] = {}
        self._vanished = VanishedFiles(self.directory)
        self._last = Processes()
        # The thread sets this time, the event loop reads it.
        self.restored_at = -math.inf
        # The event loop owns these attributes.
        self.fault = ""
        self._reading: _Reading | None = None
        self._hanging: _Reading | None = None

    @asynccontextmanager
    async def register(self, record: Record) -> AsyncIterator[FileRegistration]:
        """See `Discovery.register`."""
        path = self.directory / _file_name(record)
        registration = FileRegistration(path, self._thread, on_restore=self._note_restore)
        end = registration.withdraw
        try:
            await registration.update(record)
            async with restarting(registration.keep, name="registration"):
                yield registration
        except Exception:
            end = registration.abandon
            raise
        finally:
            await end()

    async def watch(self) -> AsyncIterator[frozenset[Record]]:
        """See `Discovery.watch`."""
        last: frozenset[Record] | None = None
        while True:
            started, pause = time.monotonic(), POLL_SECONDS
            try:
                now = await self.records()
            except DiscoveryError:
                pass  # `records` has logged the error
            else:
                pause = max(POLL_SECONDS, _PAUSE_FACTOR * (time.monotonic() - started))
                if now is not last:
                    last = now
                    yield now
            await asyncio.sleep(min(pause, _LONGEST_PAUSE_SECONDS))

    async def records(self) -> frozenset[Record]:
        """See `Discovery.records`."""
        return (await self.processes()).live

    async def processes(self) -> Processes:
        """See `Discovery.processes`."""
        try:
            found = await self._processes()
        except DiscoveryError as error:
            self.fault = str(error)
            raise
        self.fault = ""
        return found

    async def _processes(self) -> Processes:
        if self._hanging is not None and not self._hanging.future.done():
            raise DiscoveryError(f"discovery: {self.directory} does not answer")
        reading = self._reading
        # A reading that has started may miss a record that was written after the start.
        if reading is None or reading.started or reading.future.done():
            reading = self._reading = _Reading()
            reading.future = self._thread.submit(partial(self._start, reading))
        await asyncio.wait({reading.future}, timeout=READ_SECONDS)
        if not reading.future.done():
            if self._hanging is None or self._hanging.future.done():
                self._hanging = reading
                logger.warning(
                    "discovery: %s does not answer: the last known records are used", self.directory
                )
            raise DiscoveryError(f"discovery: {self.directory} does not answer")
        return reading.future.result()

    def _start(self, reading: _Reading) -> Processes:
        reading.started = True
        return self._read_all()

    def _read_all(self) -> Processes:
        try:
            names = os.listdir(self.directory)  # noqa: PTH208
        except OSError as error:
            self._report("", f"{self.directory}: {error.strerror}")
            raise DiscoveryError(f"discovery: {self.directory}: {error.strerror}") from None
        self._faults.pop("", None)
        listed = {name for name in names if _NAME.fullmatch(name)}
        # A listing may omit a file that is just replaced, so all known names are read, too.
        found = {name: self._read(name) for name in listed | self._parsed.keys()}
        for name in self._faults.keys() - listed:
            del self._faults[name]
        # A file that another reader renames after the listing is in neither list of names.
        missing = {Path(name).stem + SUFFIX for name, record in found.items() if record is None}
        ended = self._vanished.read(missing.union(names))
        live = self._last.live
        if found != self._current:
            self._current = found
            current = frozenset(record for record in found.values() if record is not None)
            live = live if current == live else current
        ids = {record.id for record in live}
        vanished = tuple(record for record in ended if record.id not in ids)
        if live is not self._last.live or vanished != self._last.vanished:
            self._last = Processes(live, vanished)
        return self._last

    def _read(self, name: str) -> Record | None:
        """Return the record of a live process; rename the file of a dead process."""
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
                    if same_file(path, fd):
                        self._mark(path, fd)
                        break
                finally:
                    os.close(fd)
        except FileNotFoundError:
            pass  # the process withdrew its record after the listing
        except DiscoveryError as error:
            self._report(name, f"{path} {error}")
        except OSError as error:
            # The fault may be in this process, such as too many open files: keep the known record.
            self._report(name, f"{path}: {error.strerror}")
            return self._parsed[name][1] if name in self._parsed else None
        self._parsed.pop(name, None)
        return None

    def _parse(self, name: str, fd: int, status: os.stat_result) -> Record | None:
        """Return the record in the file of `fd`, which is parsed once; None if it is invalid."""
        # A file never changes, but a new file may have the inode number of a removed file.
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

    def _mark(self, path: str, fd: int) -> None:
        """Rename the file of a dead process, unless a new process is replacing the file."""
        with contextlib.suppress(OSError), directory_lock(self.directory, seconds=_MARK_SECONDS):
            if same_file(path, fd):
                mark(Path(path), fd)

    def _note_restore(self) -> None:
        self.restored_at = time.monotonic()

    def _report(self, name: str, message: str) -> None:
        """Log a fault, unless the last message about this file was the same."""
        if self._faults.get(name) != message:
            self._faults[name] = message
            logger.warning("discovery: %s", message)


class _Reading:
    """A reading of the directory, which all callers share that request it before it starts."""

    future: asyncio.Future[Processes]
    # The discovery's thread sets this flag, the event loop reads it.
    started = False


class FileRegistration:
    """The record of this process, in its locked file."""

    def __init__(
        self, path: Path, thread: BackgroundThread, *, on_restore: Callable[[], None]
    ) -> None:
        """Store the arguments; `update` writes the file.

        Args:
            path: the path of the record.
            thread: runs all file-system calls.
            on_restore: called in the thread before a removed file is written again.
        """
        self._path = path
        self._thread = thread
        self._on_restore = on_restore
        # The thread owns these attributes.
        self._fd: int | None = None
        self._record: Record | None = None
        self._restore_failed = False
        # The event loop sets this flag, and the thread reads it: a late write must not show a
        # process again that has left.
        self._withdrawn = False
        # An open descriptor in a child of `fork` would keep the file of a dead parent locked.
        close_in_child(self)

    async def update(self, record: Record) -> None:
        """See `Registration.update`."""

        def write() -> None:
            if self._withdrawn:
                return
            self._record = record  # `keep` repeats a write that fails
            self._write(record)

        writing = self._thread.submit(write)
        await asyncio.wait({writing}, timeout=WRITE_SECONDS)
        if not writing.done():
            raise DiscoveryError(f"discovery: {self._path.parent} does not answer")
        writing.result()

    async def keep(self) -> None:
        """Write the record again each time that its file or the whole directory was removed."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            await self._thread.submit(self._restore)

    async def abandon(self) -> None:
        """Withdraw the record, and leave it as that of a process that vanished."""
        self._withdrawn = True
        await asyncio.wait({self._thread.submit(self._vanish)}, timeout=READ_SECONDS)

    async def withdraw(self) -> None:
        """Remove the file and release its lock; wait for at most `READ_SECONDS`.

        Writes that have not started, and all later ones, do nothing.
        """
        self._withdrawn = True
        await asyncio.wait({self._thread.submit(self._remove)}, timeout=READ_SECONDS)

    def _restore(self) -> None:
        try:
            if self._withdrawn or self._record is None:
                return
            if self._fd is not None and same_file(self._path, self._fd):
                return
            self._on_restore()
            private_directories.create(self._path.parent.parent)
            private_directories.create(self._path.parent)
            self._write(self._record)
        except (DirectoryError, DiscoveryError, OSError) as error:
            if not self._restore_failed:
                logger.warning("discovery: other processes cannot find this process: %s", error)
            self._restore_failed = True
        else:
            self._restore_failed = False
            logger.warning("discovery: %s was removed, and has been written again", self._path)

    def _write(self, record: Record) -> None:
        content = record.to_json()
        if len(content) > MAX_BYTES:
            raise DiscoveryError(
                f"discovery: the record has {len(content)} bytes: the limit is {MAX_BYTES}"
            )
        try:
            with directory_lock(self._path.parent, seconds=_LOCK_SECONDS):
                self._check_unused()
                fd = write_locked(self._path, content)
                if self._fd is None:
                    self._path.with_suffix(SUFFIX).unlink(missing_ok=True)
                if record.page_address is not None:
                    forget_at(self._path.parent, record.page_address)
        except OSError as error:
            raise DiscoveryError(
                f"discovery: cannot write {self._path}: {error.strerror}"
            ) from None
        self._close()
        self._fd = fd

    def _check_unused(self) -> None:
        """Check that no other live process uses the path.

        Raises:
            DiscoveryError: Another live process uses the path.
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
                    f"have the same instance id (--worker-id)"
                )
        finally:
            os.close(fd)

    def _remove(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                if same_file(self._path, self._fd):
                    self._path.unlink()
        self.close()

    def _vanish(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                if same_file(self._path, self._fd):
                    mark(self._path, self._fd)
        self.close()

    def close(self) -> None:
        """Close the file, and stop writing the record."""
        self._withdrawn = True
        self._record = None
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _checked(content: bytes, name: str) -> Record:
    """Parse the content of the file `name`.

    Raises:
        DiscoveryError: The content is not a valid record, or has the id of another file.
    """
    record = Record.from_json(content)
    if name != _file_name(record):
        raise DiscoveryError(f"is not a valid record: its id is {record.id}, not the file name's")
    return record


def _file_name(record: Record) -> str:
    return f"{hexadecimal(record.id)}.json"
