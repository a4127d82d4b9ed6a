"""Functions for other processes: read their state, find their children, kill them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

import psutil

from dynamometer.errors import DirectoryError


class ProcessIdentity(NamedTuple):
    """The identity of a process: its pid and its start time, because the kernel reuses pids."""

    pid: int
    started: float


def require_proc() -> None:
    """Check that /proc shows this process; psutil reads /proc.

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
    """Return whether the process still runs; False if its pid now belongs to a later process."""
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


def descendant_pids() -> list[int]:
    """Return the pids of all descendants of this process."""
    return [process.pid for process in descendants(psutil.Process())]


def session(pid: int) -> int:
    """Return the session id of a process; -1 if the process has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def environment(process: psutil.Process) -> Set[tuple[str, str]]:
    """Return the initial environment of a process; empty if it cannot be read."""
    try:
        return process.environ().items()
    except (psutil.Error, OSError):
        return frozenset()


def kill(process: psutil.Process) -> None:
    """Kill `process`, if it still runs."""
    with contextlib.suppress(psutil.Error):
        process.kill()


def identities(processes: Iterable[psutil.Process]) -> frozenset[ProcessIdentity]:
    """Return the identities of those `processes` that have not ended."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found.add(ProcessIdentity(process.pid, process.create_time()))
    return frozenset(found)


def kill_identified(identified: Iterable[ProcessIdentity]) -> int:
    """Kill those processes that still run, and return the number of killed processes."""
    killed = 0
    for identity in identified:
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(identity.pid)
            if process.create_time() == identity.started and alive(process):
                process.kill()
                killed += 1
    return killed
