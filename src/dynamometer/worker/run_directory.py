"""A worker's own directory on tmpfs, and what a killed worker left behind.

    <memory>/<id>/engine.json   the engine's processes, and the shared memory they hold
                  metrics/      the engine's multiprocess files
                  plugin/       the CPU platform, where it is switched on

The directory is locked (flock) while the worker lives. Whoever starts next and finds one whose
lock is free ends the processes named in it, if any still run, and removes what they held and
the directory itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamometer.errors import DirectoryError
from dynamometer.runtime import directories
from dynamometer.runtime.identity import hexadecimal
from dynamometer.worker.process import ProcessMark, end_marked
from dynamometer.worker.shared_memory import SharedFile, remove_unheld

logger = logging.getLogger(__name__)


class RunDirectory:
    """The directory of the worker that made it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, processes: frozenset[ProcessMark], held: frozenset[SharedFile]) -> None:
        """Write down what must be gone after this worker, however it ends."""
        content = {"processes": sorted(processes), "shared_memory": sorted(held)}
        fresh = self.path / "engine.json.new"
        # A full tmpfs must not end a worker that serves: the note of before stands.
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(content), encoding="utf-8")
            fresh.replace(self.path / "engine.json")


@contextmanager
def run_directory(instance_id: int) -> Iterator[RunDirectory]:
    """A fresh directory for this worker, removed at the end; leftovers of others are cleared.

    Raises:
        DirectoryError: it cannot be made; says why.
    """
    base = directories.memory()
    path = base / hexadecimal(instance_id)
    try:
        # One at a time: a directory that is being made has no lock of its own yet.
        with _locked(base, wait=True):
            _clear_leftovers(base)
            directories.private(path)
            lock = _locked(path, wait=False)
            lock.__enter__()
    except OSError as error:
        raise DirectoryError(f"cannot make {path}: {error.strerror}") from None
    try:
        yield RunDirectory(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        lock.__exit__(None, None, None)
        with contextlib.suppress(OSError):
            base.rmdir()  # the last one out


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of the directory `path` while the context is open; make it if missing.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
    """
    while True:
        fd = os.open(directories.private(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The last worker out may have removed it between the two calls.
            if path.exists() and os.path.samestat(path.lstat(), os.fstat(fd)):
                yield
                return
        finally:
            os.close(fd)


def _clear_leftovers(base: Path) -> None:
    for path in base.iterdir():
        if not path.is_dir() or path.is_symlink():
            continue
        with contextlib.suppress(BlockingIOError), _locked(path, wait=False):
            processes, held = _noted(path)
            ended = end_marked(processes)
            removed = remove_unheld(held)
            shutil.rmtree(path, ignore_errors=True)
            logger.info(
                "cleared what worker %s left behind: its directory%s%s",
                path.name,
                f", {ended} processes" if ended else "",
                f", {removed} files in /dev/shm" if removed else "",
            )


def _noted(path: Path) -> tuple[list[ProcessMark], list[SharedFile]]:
    try:
        content = json.loads((path / "engine.json").read_bytes())
        return (
            [ProcessMark(*mark) for mark in content["processes"]],
            [SharedFile(*file) for file in content["shared_memory"]],
        )
    except (OSError, ValueError, TypeError, KeyError):
        return [], []  # killed before its engine had anything
