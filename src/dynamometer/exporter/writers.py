"""Which processes write an engine's files, and which of those have ended.

A file's name says by which pid its writer knows itself. In a pid namespace of its own (a
container) that number means nothing here, so a process is believed to be the writer when it maps
the file, or, where that cannot be seen, when it has the file's owner and began within the hour
before the file was made or grew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil

from dynamometer.engines import sglang
from dynamometer.exporter import processes
from dynamometer.process.children import alive

# Clocks of processes and of files tick differently.
_TICK_SECONDS: Final = 1.0
# An engine makes its files while it starts, and that may take its time.
_SOON_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes; `what` is its pid and how it called itself."""

    process: psutil.Process
    what: str


class Writers:
    """The writers of an engine's files, by the names that the files have for them.

    Attributes:
        alive: those that were seen, and had not ended when they were last looked at.
        growing: those that cannot be seen, and whose files have changed since they were retired.
        visible: whether any was ever seen: pids mean something here.
        sglang: whether any of them is SGLang's.
    """

    def __init__(self) -> None:
        self.alive: dict[str, Writer] = {}
        self.growing: set[str] = set()
        self.visible = False
        self.sglang = False
        self._retired: set[str] = set()
        self._known: dict[str, frozenset[str]] = {}

    def meet(
        self,
        files: Mapping[str, Sequence[str]],
        members: Callable[[], Iterable[psutil.Process]],
    ) -> frozenset[str]:
        """Look for the writers of files that were not there before.

        Args:
            files: the paths of the files of each writer, retired ones left out.
            members: processes among which they may be, perhaps under other numbers.

        Returns:
            Those that seem to have ended: they are to be retired. One that comes back because
            its files have changed lives after all.
        """
        paths = {name: frozenset(files[name]) for name in files}
        new = [name for name in files if not paths[name] <= self._known.get(name, frozenset())]
        self._retired |= self._known.keys() - paths.keys()  # with their files
        self._known = paths
        if new:
            numbers = {processes.own_number(member): member for member in members()}
            for name in new:
                self._look_for(name, files[name], numbers)
        self.growing |= self._retired & files.keys()
        missing = frozenset(files.keys() - self.alive.keys() - self.growing)
        self._retired |= missing
        return missing

    @property
    def all_there(self) -> bool:
        """Whether none has ever ended, as far as is known."""
        return not self._retired

    def ended(self) -> Mapping[str, Writer]:
        """The writers that have ended since the last call."""
        found = {name: writer for name, writer in self.alive.items() if not alive(writer.process)}
        self.lose(found)
        return found

    def lose(self, names: Iterable[str]) -> None:
        """Take it that these have ended; until their files change."""
        for name in names:
            self.alive.pop(name, None)
            self.growing.discard(name)
            self._retired.add(name)

    def _look_for(
        self, name: str, files: Sequence[str], members: Mapping[str, psutil.Process]
    ) -> None:
        process = members.get(name) or _writer(name, files)
        if process is not None:
            self.visible = True
            self.sglang = self.sglang or _is_sglang(process)
            self.alive[name] = Writer(process, processes.describe(process))


def _writer(name: str, files: Sequence[str]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(name))
    except (psutil.Error, ValueError, OverflowError):
        return None
    return process if alive(process) and _writes(process, files) else None


def _writes(process: psutil.Process, files: Sequence[str]) -> bool:
    try:
        mapped = processes.mapped(process)
    except PermissionError:
        return _may_have_made(process, files)
    except OSError:
        return False
    for path in files:
        with suppress(OSError):
            if processes.file_id(path) in mapped:
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


def _is_sglang(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return sglang.launch_arguments(command) is not None or any(
        word.startswith(sglang.TITLE) for word in command[:1]
    )
