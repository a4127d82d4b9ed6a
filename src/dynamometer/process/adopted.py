"""Adopted processes: orphans that the kernel gives to this process, which must reap them.

The first process of a container (pid 1) adopts the orphans of its pid namespace, and a subreaper
those of its descendants. An adopted process that has ended stays a zombie until it is reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final, NamedTuple

CHECK_SECONDS: Final = 2.0


class _Zombie(NamedTuple):
    """A child that has ended: its pid, and the clock ticks at its start."""

    pid: int
    start: bytes


def ignore_parents_signal() -> None:
    """Ignore SIGQUIT, which SGLang's processes send to their parent when they fail.

    When their own parent has ended, they send the signal to the process that adopted them. The
    handler does nothing: children would inherit SIG_IGN, and could not end by SIGQUIT.
    """
    signal.signal(signal.SIGQUIT, lambda *_: None)


async def reap_repeatedly() -> None:
    """Reap adopted processes that have ended, until cancelled.

    asyncio and subprocess reap the processes that this process started, within milliseconds. So a
    process that is a zombie at two checks was adopted.
    """
    zombies: frozenset[_Zombie] = frozenset()
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if _any_ended():
            zombies = await asyncio.to_thread(_reap, zombies)
        else:
            zombies = frozenset()


def _any_ended() -> bool:
    """Return whether a child of this process is a zombie: one system call, without /proc."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _reap(known: frozenset[_Zombie]) -> frozenset[_Zombie]:
    """Reap the zombies of the previous check, `known`, and return the other ones."""
    zombies = _zombies()
    for pid, _ in zombies & known:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return zombies - known


def _zombies() -> frozenset[_Zombie]:
    """Return the children of this process that have ended, from /proc.

    psutil would be the only reason for which a frontend imports it.
    """
    found = set()
    for entry in Path("/proc").iterdir():
        # proc(5): the name in parentheses may contain spaces. The state, the parent and the start
        # are fields 3, 4 and 22.
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(entry.name)
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] == b"Z" and int(fields[1]) == os.getpid():
                found.add(_Zombie(pid, fields[19]))
    return frozenset(found)
