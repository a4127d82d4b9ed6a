"""The processes that write an engine's files, and which of these processes have ended.

The name of a file contains the identifier of its writer, usually a pid. A pid of another pid
namespace (a container) may belong to another process here. So a process counts as the writer only
if it maps the file.

A writer is visible if its process was found. The process of an invisible writer has ended, or it
runs where this process cannot see it (in another pid namespace, or as another user). `Liveness`
decides between the two.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

import psutil

from dynamometer.exporter import finder, procfs
from dynamometer.process.children import alive

# Seconds after the engine answers again in which a restarted engine may write its first new files.
_NEW_FILES_SECONDS: Final = 60.0
# Errors of a check of a process that has just ended.
_ENDED: Final = frozenset({errno.ENOENT, errno.ESRCH})


class Liveness(Enum):
    """The evidence that an engine lives, apart from its writers.

    ALIVE: the first process runs, or the URL answers. Invisible writers count as alive.
    ENDED: the first process has ended. All writers count as ended.
    UNREACHABLE: the URL does not answer. Invisible writers count as ended.
    UNKNOWN: no process and no URL is known. An invisible writer counts as alive while its files
        change.
    """

    UNKNOWN = "unknown"
    ALIVE = "alive"
    ENDED = "ended"
    UNREACHABLE = "unreachable"

    @property
    def engine_ended(self) -> bool:
        """True if the engine, and so each invisible writer, counts as ended."""
        return self in (Liveness.ENDED, Liveness.UNREACHABLE)


@dataclass(frozen=True, slots=True)
class Writer:
    """A visible writer; `description` is its pid and name."""

    process: psutil.Process
    description: str


@dataclass(frozen=True, slots=True)
class Change:
    """The writers that a call of `Writers.update` found to have ended, or to live again.

    Attributes:
        retire: writers that count as ended now: their gauges are hidden, their totals stay.
        resume: writers that were retired before, and count as alive now.
    """

    retire: frozenset[str] = frozenset()
    resume: frozenset[str] = frozenset()


class Writers:
    """The writers of an engine's files, by the identifiers in the names of the files.

    A thread uses this object only while it holds the lock of the `FilesSource` that owns it.

    Attributes:
        alive: visible writers that had not ended at the last check.
        still_writing: writers whose files have changed since these writers were retired.
        writers_are_essential: the engine has ended when one of its visible writers has ended.
    """

    def __init__(self) -> None:
        self.alive: dict[str, Writer] = {}
        self.still_writing: set[str] = set()
        self.writers_are_essential = False
        self._liveness = Liveness.UNKNOWN
        self._retired: set[str] = set()
        # The paths of the files of each writer that is not retired.
        self._files: dict[str, frozenset[str]] = {}
        self._known: set[str] = set()
        # While the engine counts as ended: the writers that were invisible at its end; the known
        # writers that have written since its end; the writers that appeared since its end.
        self._invisible_at_end: set[str] = set()
        self._written_since_end: set[str] = set()
        self._new_since_end: set[str] = set()
        # The writers that were resumed only because the engine answered again, and since when.
        self._resumed: set[str] = set()
        self._resumed_at = float("-inf")

    def update(
        self,
        files: Mapping[str, Sequence[str]],
        members: Callable[[], Iterable[psutil.Process]],
        liveness: Liveness,
    ) -> Change:
        """Find the processes of new files, and return the writers to retire and to resume.

        Args:
            files: the paths of the files of each writer that is not retired.
            members: a function that returns the engine's processes, whose pids in their own pid
                namespace may differ from those here.
            liveness: the evidence that the engine lives.
        """
        paths = {name: frozenset(files[name]) for name in files}
        changed = [name for name in files if not paths[name] <= self._files.get(name, frozenset())]
        self._retired |= (
            self._files.keys() - paths.keys()
        )  # the files of these writers were removed
        unchecked = self._find_processes(changed, files, members)
        self._files = {name: paths[name] for name in paths.keys() - unchecked}
        new = self._files.keys() - self._known
        self._known |= new
        self.still_writing |= self._retired & self._files.keys()
        if liveness.engine_ended:
            names = frozenset(self._files) if liveness is Liveness.ENDED else self._invisible()
            change = Change(retire=self._retire_after_end(names, new))
        elif liveness is Liveness.ALIVE:
            change = self._update_while_alive(new)
        else:
            change = Change(retire=self._invisible() - self.still_writing)
        self._liveness = liveness
        self._retired |= change.retire
        self._retired -= change.resume
        return change

    def _invisible(self) -> frozenset[str]:
        return frozenset(self._files.keys() - self.alive.keys())

    @property
    def none_ended(self) -> bool:
        """True if no writer is known to have ended."""
        return not self._retired

    def take_ended(self) -> Mapping[str, Writer]:
        """Return the visible writers that have ended since the last call.

        Raises:
            OSError: The processes cannot be checked.
        """
        found = {name: writer for name, writer in self.alive.items() if not alive(writer.process)}
        self.retire(found)
        return found

    def retire(self, names: Iterable[str]) -> None:
        """Treat these writers as ended until their files change."""
        for name in names:
            self.alive.pop(name, None)
            self.still_writing.discard(name)
            self._retired.add(name)

    def _retire_after_end(self, names: frozenset[str], new: Set[str]) -> frozenset[str]:
        """Return `names` to retire; a writer that still writes is retired at each update."""
        if not self._liveness.engine_ended:
            self._invisible_at_end = set(self._invisible())
            self._written_since_end, self._new_since_end = set(), set()
        else:
            self._new_since_end |= new & names
            self._written_since_end |= names - new
        self._resumed = set()
        self.retire(names)
        return names

    def _update_while_alive(self, new: Set[str]) -> Change:
        """Return the changes while the engine lives; `new` are the writers seen for the first time.

        A writer that was resumed only because the engine answered again is retired when new files
        appear soon after: they show that the engine was restarted.
        """
        if self._liveness.engine_ended:
            return self._resume_after_return(new)
        retire: set[str] = set()
        # If one writer is visible, the pids in the names of the files are pids of this namespace.
        if self.alive:
            retire = {name for name in self._invisible() - self.still_writing if _has_ended(name)}
        if new and time.monotonic() - self._resumed_at < _NEW_FILES_SECONDS:
            retire |= self._resumed & self._files.keys()
            self._resumed = set()
        return Change(retire=frozenset(retire))

    def _resume_after_return(self, new: Set[str]) -> Change:
        """Return the writers to resume when an engine that counted as ended answers again.

        An engine that was restarted writes new files: only these are resumed. Without new files,
        the engine was only unreachable: the writers that have written since are resumed, or, if
        none has written yet, all writers that were invisible at its end.
        """
        written = self._written_since_end | self._files.keys() - new
        resume = self._new_since_end | new or written or self._invisible_at_end
        self._resumed = self._invisible_at_end if resume is self._invisible_at_end else set()
        self._resumed_at = time.monotonic()
        return Change(resume=frozenset(resume - self._files.keys()))

    def _find_processes(
        self,
        names: Sequence[str],
        files: Mapping[str, Sequence[str]],
        members: Callable[[], Iterable[psutil.Process]],
    ) -> set[str]:
        """Find the processes of the writers `names`; return those that could not be checked."""
        if not names:
            return set()
        unchecked: set[str] = set()
        try:
            by_own_pid = {procfs.own_pid(member): member for member in members()}
        except OSError:
            return set(names)
        for name in names:
            try:
                process = by_own_pid.get(name) or _writer(name, files[name], by_own_pid.values())
            except OSError as error:
                if error.errno not in _ENDED:
                    unchecked.add(name)  # too many open files, say: the next update tries again
                continue
            if process is not None:
                self.writers_are_essential = self.writers_are_essential or finder.is_essential(
                    process
                )
                self.alive[name] = Writer(process, procfs.describe(process))
        return unchecked


def _writer(
    name: str, files: Sequence[str], members: Iterable[psutil.Process]
) -> psutil.Process | None:
    """Return the process that maps one of `files`: the process with the pid `name`, or a member.

    A member is searched only if `name` is not a pid.

    Raises:
        OSError: The process cannot be checked.
    """
    if not _is_pid(name):
        return next((one for one in members if alive(one) and _maps_any(one, files)), None)
    try:
        process = psutil.Process(int(name))
    except (psutil.Error, ValueError, OverflowError):
        return None
    return process if alive(process) and _maps_any(process, files) else None


def _maps_any(process: psutil.Process, files: Sequence[str]) -> bool:
    try:
        mapped = procfs.mapped_files(process)
    except PermissionError:
        return False
    for path in files:
        with suppress(OSError):
            if procfs.file_id(path) in mapped:
                return True
    return False


def _has_ended(name: str) -> bool:
    """Return whether the invisible writer with the pid `name` has certainly ended.

    A process with this pid that can be checked is another one: a writer would be visible.
    """
    if not _is_pid(name):
        return False
    try:
        process = psutil.Process(int(name))
        procfs.mapped_files(process)
    except psutil.NoSuchProcess:
        return not psutil.pid_exists(int(name))  # /proc may hide the process
    except (PermissionError, psutil.AccessDenied):
        return False
    except (psutil.Error, ValueError, OverflowError):
        return True
    except OSError as error:
        return error.errno in _ENDED
    return True


def _is_pid(name: str) -> bool:
    return name.isascii() and name.isdecimal()
