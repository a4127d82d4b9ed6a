"""Other processes: their state, children and identity, and how to kill them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

import psutil

from dynamometer.errors import DirectoryError


class ProcessMark(NamedTuple):
    """The identity of a process: a later process may have the same pid, but not the same start."""

    pid: int
    started: float


def require_proc() -> None:
    """Check that /proc shows this process, as psutil needs it.

    Raises:
        DirectoryError: /proc is empty, or belongs to another pid namespace.
    """
    try:
        shown = Path("/proc/self").readlink().name
    except OSError:
        shown = ""
    if shown != str(os.getpid()):
        raise DirectoryError(
            "/proc does not show this process, and without it the processes of an engine cannot "
            "be found: mount it (mount -t proc proc /proc)"
        )


def alive(process: psutil.Process) -> bool:
    """Return whether this very process still runs, not a later process with the same pid."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return the descendants of a process; none if the process has ended."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def session(pid: int) -> int:
    """Return the session of a process; -1 if the process has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def environment(process: psutil.Process) -> Set[tuple[str, str]]:
    """Return the variables that a process started with; none if they cannot be read."""
    try:
        return process.environ().items()
    except (psutil.Error, OSError):
        return frozenset()


def kill(process: psutil.Process) -> None:
    """Kill `process`, if it still runs."""
    with contextlib.suppress(psutil.Error):
        process.kill()


def marks(members: Iterable[psutil.Process]) -> frozenset[ProcessMark]:
    """Return the marks of `members`, by which a later worker recognises the processes."""
    found = set()
    for member in members:
        with contextlib.suppress(psutil.Error):
            found.add(ProcessMark(member.pid, member.create_time()))
    return frozenset(found)


def end_marked(processes: Iterable[ProcessMark]) -> int:
    """Kill those of `processes` that still run, and return how many were killed."""
    ended = 0
    for mark in processes:
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(mark.pid)
            if process.create_time() == mark.started and alive(process):
                process.kill()
                ended += 1
    return ended
