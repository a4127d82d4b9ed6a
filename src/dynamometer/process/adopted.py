"""Adopted processes: orphans that the kernel gives to this process, which must reap them.

The first process of a container (pid 1) adopts the orphans of its pid namespace, and a subreaper
those of its descendants. An adopted process that has ended stays a zombie until it is reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

import psutil

from dynamometer.process.children import ProcessIdentity, identities

CHECK_SECONDS: Final = 2.0


async def reap_repeatedly() -> None:
    """Reap adopted processes that have ended, until cancelled.

    asyncio and subprocess reap the processes that this process started, within milliseconds. So a
    process that is a zombie at two checks was adopted.
    """
    zombies: frozenset[ProcessIdentity] = frozenset()
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


def _reap(known: frozenset[ProcessIdentity]) -> frozenset[ProcessIdentity]:
    """Reap the zombies of the previous check, `known`, and return the other ones."""
    zombies = identities(child for child in psutil.Process().children() if _is_zombie(child))
    for pid, _ in zombies & known:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return zombies - known


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return False
