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
    """The identity of a process: its pid and its start, because the kernel reuses pids.

    The start is the number of clock ticks from a boot of the machine, and the id of this boot. A
    Unix time would change when the clock is set.
    """

    pid: int
    start: str


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
        if process.is_running() and (start := _start(process.pid)):
            found.add(ProcessIdentity(process.pid, start))
    return frozenset(found)


def _start(pid: int) -> str:
    """Return the start of a process for its identity; empty if the process has ended."""
    try:
        # proc(5): the name in parentheses may contain spaces; field 22 is the start.
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        ticks = stat.rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""
    boot = ""
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{ticks} {boot}"


def kill_identified(identified: Iterable[ProcessIdentity]) -> int:
    """Kill those processes that still run, and return the number of killed processes."""
    killed = 0
    for identity in identified:
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(identity.pid)
            if _start(identity.pid) == identity.start and alive(process):
                process.kill()
                killed += 1
    return killed
