"""Directories of a worker's own: its files and processes are all that are there.

A worker of a test that uses `files` has a mount namespace of its own, with an empty /dev/shm and an
empty directory for temporary files.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Files:
    """The directories where a worker and its engine create files.

    Attributes:
        memory: /dev/shm of the worker; a directory of the test's /dev/shm.
        temporary: TMPDIR of the worker; a short path, because engines create sockets there.
    """

    memory: Path
    temporary: Path

    @property
    def before(self) -> list[str]:
        """Words before a worker's command line."""
        script = 'mount --bind "$0" /dev/shm && export TMPDIR="$1" && shift && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(self.memory), str(self.temporary)]

    def left(self) -> set[str]:
        """Return the names of all files and directories, except the cache that torch keeps."""
        places = (self.memory, self.temporary)
        names = {path.name for place in places for path in place.iterdir()}
        return {name for name in names if not name.startswith("torchinductor_")}


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


def processes_in(mounts: str) -> list[psutil.Process]:
    """Return the living processes in a mount namespace, orphans included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if namespace(process.pid) == mounts:
                found.append(process)
    return found
