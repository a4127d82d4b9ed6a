"""The ends of processes that need not be children of this process, reported by the kernel at once.

The kernel reports the end of a process through a file descriptor (a pidfd). The exit code of a
process that is not a child is in /proc until its parent reaps it.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessExit:
    """The end of a process.

    Attributes:
        pid: the pid of the process.
        name: the name that `Exits.watch` was given.
        code: the exit code; -N if signal N killed the process, None if the code is unknown.
    """

    pid: int
    name: str
    code: int | None


class Exits:
    """The ends of watched processes; one event loop uses an object of this class.

    Attributes:
        found: the ends so far, in the order in which they were noticed.
        any: set at the first end.
    """

    def __init__(self) -> None:
        self.found: list[ProcessExit] = []
        self.any = asyncio.Event()
        self._descriptors: dict[psutil.Process, int] = {}
        self._ended: set[psutil.Process] = set()

    def watch(self, process: psutil.Process, name: str) -> None:
        """Watch a process from now on; a second call for the same process does nothing.

        Raises:
            OSError: The kernel is older than 5.3, forbids the call, or has too many open files.
        """
        if process in self._descriptors or process in self._ended:
            return
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._note(process, name, None)
            return
        if not process.is_running():  # the pid is of another process, or of none
            os.close(descriptor)
            self._note(process, name, None)
            return
        self._descriptors[process] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._receive, process, name)

    def close(self) -> None:
        """Stop watching."""
        for process in list(self._descriptors):
            self._forget(process)

    def _receive(self, process: psutil.Process, name: str) -> None:
        code = _exit_code(process.pid)
        self._forget(process)
        self._note(process, name, code)

    def _forget(self, process: psutil.Process) -> None:
        descriptor = self._descriptors.pop(process)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)

    def _note(self, process: psutil.Process, name: str, code: int | None) -> None:
        self._ended.add(process)
        self.found.append(ProcessExit(process.pid, name, code))
        self.any.set()


def _exit_code(pid: int) -> int | None:
    """Return the exit code of a process that ended; None if its parent has reaped it."""
    try:
        # proc(5): the name in parentheses may contain spaces; the exit code is the last field.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        state, status = fields[0], int(fields[-1])
    except (OSError, ValueError, IndexError):
        return None
    return os.waitstatus_to_exitcode(status) if state in (b"Z", b"X") else None
