"""Which processes write an engine's files, and which of those have ended.

A file's name says by which identifier its writer knows itself: mostly a pid. In another pid
namespace (a container) that number means nothing here, so a process counts as the writer when it
maps the file. Where nothing else tells whether the engine lives, and the maps cannot be read
(another user's process), a process counts as the writer when it has the file's owner and began
within the hour before the file was made or grew.

A writer that cannot be found may be dead, or alive where this process cannot see it: `Life`
decides.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

import psutil

from dynamometer.exporter import finder, procfs
from dynamometer.process.children import alive

# Clocks of processes and of files tick differently.
_TICK_SECONDS: Final = 1.0
# An engine makes its files while it starts, and that may take its time.
_SOON_SECONDS: Final = 3600.0
# An engine that answers again may make its first files only now.
_LATE_SECONDS: Final = 60.0
# A process that ends while it is looked at.
_ENDED: Final = frozenset({errno.ENOENT, errno.ESRCH})


class Life(Enum):
    """What is known of the engine besides its writers.

    LIVES: its first process runs, or its URL answers: writers that cannot be seen live too.
    ENDED: its first process has ended: every writer has. UNREACHABLE: nobody answers at its URL:
    writers that cannot be seen have ended. UNKNOWN: nothing tells: a writer that cannot be seen
    lives where its files change.
    """

    UNKNOWN = "unknown"
    LIVES = "lives"
    ENDED = "ended"
    UNREACHABLE = "unreachable"

    @property
    def over(self) -> bool:
        """Whether writers that cannot be seen have ended."""
        return self in (Life.ENDED, Life.UNREACHABLE)


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes; `what` is its pid and how it called itself."""

    process: psutil.Process
    what: str


@dataclass(frozen=True, slots=True)
class Change:
    """Writers whose files are to be treated differently from now on.

    Attributes:
        retire: they have ended: their gauges leave, their totals stay.
        resume: they were retired, and live after all.
    """

    retire: frozenset[str] = frozenset()
    resume: frozenset[str] = frozenset()


class Writers:
    """The writers of an engine's files, by the names that the files have for them.

    Owned by the lock of the `FilesSource` that holds it: no thread touches it without.

    Attributes:
        alive: those that were seen, and had not ended when they were last looked at.
        growing: those that cannot be seen, and whose files have changed since they were retired.
        ends_as_a_whole: whether the engine has ended once any of these has.
    """

    def __init__(self) -> None:
        self.alive: dict[str, Writer] = {}
        self.growing: set[str] = set()
        self.ends_as_a_whole = False
        self._life = Life.UNKNOWN
        self._retired: set[str] = set()
        self._known: dict[str, frozenset[str]] = {}
        self._ever: set[str] = set()
        # Since the engine ended: those that could not be seen then, old ones and new ones that have
        # written since. After its return: the first, where they are taken for alive again.
        self._former: set[str] = set()
        self._changed: set[str] = set()
        self._fresh: set[str] = set()
        self._returned: set[str] = set()
        self._returned_at = float("-inf")

    def update(
        self,
        files: Mapping[str, Sequence[str]],
        members: Callable[[], Iterable[psutil.Process]],
        life: Life,
    ) -> Change:
        """Look for the writers of files that were not there before.

        Args:
            files: the paths of the files of each writer, retired ones left out.
            members: processes among which they may be, perhaps under other numbers.
            life: whether the engine lives.
        """
        paths = {name: frozenset(files[name]) for name in files}
        found = [name for name in files if not paths[name] <= self._known.get(name, frozenset())]
        self._retired |= self._known.keys() - paths.keys()  # with their files
        undecided = self._look_for(found, files, members, certain=life is not Life.UNKNOWN)
        self._known = {name: paths[name] for name in paths.keys() - undecided}
        fresh = self._known.keys() - self._ever
        self._ever |= fresh
        self.growing |= self._retired & self._known.keys()
        if life.over:
            names = frozenset(self._known) if life is Life.ENDED else self._unseen()
            change = Change(retire=self._note_end(names, fresh))
        elif life is Life.LIVES:
            change = self._note_life(fresh)
        else:
            change = Change(retire=self._unseen() - self.growing)
        self._life = life
        self._retired |= change.retire
        self._retired -= change.resume
        return change

    def _unseen(self) -> frozenset[str]:
        return frozenset(self._known.keys() - self.alive.keys())

    @property
    def all_there(self) -> bool:
        """Whether none has ever ended, as far as is known."""
        return not self._retired

    def ended(self) -> Mapping[str, Writer]:
        """The writers that have ended since the last call.

        Raises:
            OSError: They cannot be looked at.
        """
        found = {name: writer for name, writer in self.alive.items() if not alive(writer.process)}
        self.lose(found)
        return found

    def lose(self, names: Iterable[str]) -> None:
        """Take it that these have ended; until their files change."""
        for name in names:
            self.alive.pop(name, None)
            self.growing.discard(name)
            self._retired.add(name)

    def _note_end(self, names: frozenset[str], fresh: Set[str]) -> frozenset[str]:
        """Retire what there is; and again what is written although the engine has ended."""
        if not self._life.over:
            self._former, self._changed, self._fresh = set(self._unseen()), set(), set()
        else:
            self._fresh |= fresh & names
            self._changed |= names - fresh
        self._returned = set()
        self.lose(names)
        return names

    def _note_life(self, fresh: Set[str]) -> Change:
        if self._life.over:
            return self._note_return(fresh)
        retire: set[str] = set()
        if self.alive:  # numbers of processes mean something here
            retire = {name for name in self._unseen() - self.growing if _cannot_live(name)}
        if fresh and time.monotonic() - self._returned_at < _LATE_SECONDS:
            retire |= self._returned & self._known.keys()  # another engine than the former one
            self._returned = set()
        return Change(retire=frozenset(retire))

    def _note_return(self, fresh: Set[str]) -> Change:
        """Tell another engine, which has files of its own, from one that could not be reached.

        Old files that have changed since the end are the last words of the former engine where
        there are new ones, and the new engine's where there are none.
        """
        changed = self._changed | self._known.keys() - fresh
        resume = self._fresh | fresh or changed or self._former
        self._returned = self._former if resume is self._former else set()
        self._returned_at = time.monotonic()
        return Change(resume=frozenset(resume - self._known.keys()))

    def _look_for(
        self,
        names: Sequence[str],
        files: Mapping[str, Sequence[str]],
        members: Callable[[], Iterable[psutil.Process]],
        *,
        certain: bool,
    ) -> set[str]:
        """Find the processes of these writers; the names of which nothing could be found out."""
        if not names:
            return set()
        undecided: set[str] = set()
        try:
            numbers = {procfs.own_number(member): member for member in members()}
        except OSError:
            return set(names)
        for name in names:
            try:
                process = numbers.get(name) or _writer(
                    name, files[name], numbers.values(), certain=certain
                )
            except OSError as error:
                if error.errno not in _ENDED:
                    undecided.add(name)  # too many open files, say: the next look decides
                continue
            if process is not None:
                self.ends_as_a_whole = self.ends_as_a_whole or finder.ends_as_a_whole(process)
                self.alive[name] = Writer(process, procfs.describe(process))
        return undecided


def _writer(
    name: str, files: Sequence[str], members: Iterable[psutil.Process], *, certain: bool
) -> psutil.Process | None:
    """The process that is known by `name`, or, where that is not a pid, the member that writes.

    Raises:
        OSError: It cannot be looked at.
    """
    if not _is_number(name):
        writing = (one for one in members if alive(one) and _writes(one, files, certain=True))
        return next(writing, None)
    try:
        process = psutil.Process(int(name))
    except (psutil.Error, ValueError, OverflowError):
        return None
    return process if alive(process) and _writes(process, files, certain=certain) else None


def _writes(process: psutil.Process, files: Sequence[str], *, certain: bool) -> bool:
    try:
        mapped = procfs.mapped(process)
    except PermissionError:
        return not certain and _may_have_made(process, files)
    for path in files:
        with suppress(OSError):
            if procfs.file_id(path) in mapped:
                return True
    return False


def _may_have_made(process: psutil.Process, files: Sequence[str]) -> bool:
    """Whether it has the files' owner, and began not long before one of them was made or grew."""
    try:
        begun, owner = process.create_time(), process.uids().effective
        for path in files:
            status = os.stat(path)  # noqa: PTH116
            since = status.st_mtime - begun
            if owner == status.st_uid and -_TICK_SECONDS <= since <= _SOON_SECONDS:
                return True
    except (psutil.Error, OSError):
        pass
    return False


def _cannot_live(name: str) -> bool:
    """Whether no process that this one could not look at has the number `name`."""
    if not _is_number(name):
        return False
    try:
        process = psutil.Process(int(name))
        procfs.mapped(process)
    except psutil.NoSuchProcess:
        return not psutil.pid_exists(int(name))  # /proc may hide it
    except (PermissionError, psutil.AccessDenied):
        return False
    except (psutil.Error, ValueError, OverflowError):
        return True
    except OSError as error:
        return error.errno in _ENDED
    return True


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
