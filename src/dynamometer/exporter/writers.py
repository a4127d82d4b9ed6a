"""Which processes write an engine's files, and which of those have ended.

A file's name says by which pid its writer knows itself. In a pid namespace of its own (a
container) that number means nothing here, so a process is believed to be the writer when it maps
the file, or, where that cannot be seen, when it is older than the file's last change of size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import psutil

from dynamometer.engines import sglang
from dynamometer.exporter import processes
from dynamometer.exporter.processes import FileId

# Clocks of processes and of files tick differently.
_TICK_SECONDS: Final = 1.0


class Writers:
    """The writers of some files.

    Attributes:
        visible: whether any was ever seen: pids mean something here.
        engine: whether any of them is SGLang's.
    """

    def __init__(self) -> None:
        self.visible = False
        self.engine = False
        self._alive: dict[str, psutil.Process] = {}
        self._known: dict[str, frozenset[str]] = {}

    @property
    def alive(self) -> int:
        """How many are known to live."""
        return len(self._alive)

    def meet(
        self,
        files: Mapping[str, Sequence[str]],
        members: Callable[[], Iterable[psutil.Process]],
    ) -> frozenset[str]:
        """Look for the writers of files that were not there before.

        Args:
            files: the paths of the files of each process, as the files' names have it.
            members: processes among which they may be, under other numbers.

        Returns:
            Those that cannot be found: ended, or, while none is `visible`, perhaps elsewhere.
        """
        paths = {name: frozenset(files[name]) for name in files}
        new = [name for name in files if not paths[name] <= self._known.get(name, frozenset())]
        self._known = paths
        numbers = {processes.own_number(member): member for member in members()} if new else {}
        for name in new:
            writer = numbers.get(name) or _writer(name, files[name])
            if writer is not None:
                self.visible = True
                self.engine = self.engine or _is_sglang(writer)
                self._alive[name] = writer
        return frozenset(name for name in files if name not in self._alive)

    def ended(self) -> Mapping[str, psutil.Process]:
        """The writers that have ended since the last call, by the names that files have."""
        found = {name: p for name, p in self._alive.items() if not processes.alive(p)}
        for name in found:
            del self._alive[name]
        return found


def _writer(name: str, files: Sequence[str]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(name))
    except (psutil.Error, ValueError, OverflowError):
        return None
    return process if processes.alive(process) and _writes(process, files) else None


def _writes(process: psutil.Process, files: Sequence[str]) -> bool:
    try:
        mapped = processes.mapped(process)
    except PermissionError:
        return _is_older(process, files)
    except OSError:
        return False
    return any(identity in mapped for identity in map(_identity, files))


def _is_older(process: psutil.Process, files: Sequence[str]) -> bool:
    try:
        begun = process.create_time()
        return any(begun <= os.stat(path).st_mtime + _TICK_SECONDS for path in files)  # noqa: PTH116
    except (psutil.Error, OSError):
        return False


def _identity(path: str) -> FileId:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return FileId(-1, -1)
    return FileId(status.st_dev, status.st_ino)


def _is_sglang(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return sglang.launch_arguments(command) is not None or any(
        word.startswith(sglang.TITLE) for word in command[:1]
    )
