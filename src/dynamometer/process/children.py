"""Other processes: which live, what they started, how to know them again, how to kill them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Set
from typing import NamedTuple

import psutil


class ProcessMark(NamedTuple):
    """A process, told from a later one with the same number by when it started."""

    pid: int
    started: float


def alive(process: psutil.Process) -> bool:
    """Whether it still runs: the very process, not one that got its number later."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All that it started; empty where it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def session(pid: int) -> int:
    """Return the session of a process; -1 where it has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def environment(process: psutil.Process) -> Set[tuple[str, str]]:
    """What it was started with; empty where that cannot be read, or was written over."""
    try:
        return process.environ().items()
    except (psutil.Error, OSError):
        return frozenset()


def kill(process: psutil.Process) -> None:
    """Kill `process`, if it still runs."""
    with contextlib.suppress(psutil.Error):
        process.kill()


def marks(members: Iterable[psutil.Process]) -> frozenset[ProcessMark]:
    """The marks of `members`, by which a later worker knows them."""
    found = set()
    for member in members:
        with contextlib.suppress(psutil.Error):
            found.add(ProcessMark(member.pid, member.create_time()))
    return frozenset(found)


def end_marked(processes: Iterable[ProcessMark]) -> int:
    """Kill those of `processes` that still run; how many did."""
    ended = 0
    for mark in processes:
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(mark.pid)
            if process.create_time() == mark.started and alive(process):
                process.kill()
                ended += 1
    return ended
