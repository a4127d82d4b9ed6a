"""A worker's own directory on tmpfs, and what a killed worker left behind.

    <memory>/<id>/engine.json   the engine's processes, the shared memory they hold, and the
                                directory of its temporary files
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
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dynamometer.errors import DirectoryError
from dynamometer.process import private_directories
from dynamometer.process.children import ProcessMark, end_marked
from dynamometer.process.descriptors import Descriptor
from dynamometer.process.shared_memory import SharedFile, remove_unheld
from dynamometer.runtime.identity import hexadecimal
from dynamometer.worker.process_tree import end_owned

logger = logging.getLogger(__name__)


class RunDirectory:
    """The directory of the worker that made it.

    Attributes:
        path: on tmpfs.
        temporary: on disk, where engines put files that are too large for memory; a short path,
            for the sockets among them.
    """

    def __init__(self, path: Path, temporary: Path) -> None:
        self.path = path
        self.temporary = temporary
        self.note(frozenset(), frozenset())

    def note(self, processes: frozenset[ProcessMark], held: frozenset[SharedFile]) -> None:
        """Write down what must be gone after this worker, however it ends."""
        content = {
            "processes": sorted(processes),
            "shared_memory": sorted(held),
            "temporary": str(self.temporary),
        }
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
    base = private_directories.create_memory()
    path = base / hexadecimal(instance_id)
    with ExitStack() as stack:
        try:
            # One at a time: a directory that is being made has no lock of its own yet.
            with _locked(base, wait=True):
                _clear_leftovers(base)
                stack.callback(_remove_if_empty, base)
                private_directories.create(path)
                stack.enter_context(_locked(path, wait=False))
        except OSError as error:
            raise DirectoryError(f"cannot make {path}: {error.strerror}") from None
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        temporary = private_directories.create_temporary("dyno-")
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        yield RunDirectory(path, temporary)


def _remove_if_empty(base: Path) -> None:
    with contextlib.suppress(OSError):
        base.rmdir()  # the last one out


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of the directory `path` while the context is open; make it if missing.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
    """
    while True:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        lock = Descriptor(os.open(private_directories.create(path), flags))
        try:
            fcntl.flock(lock.number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The last worker out may have removed it between the two calls.
            if path.exists() and os.path.samestat(path.lstat(), os.fstat(lock.number)):
                yield
                return
        finally:
            lock.close()


def _clear_leftovers(base: Path) -> None:
    for path in base.iterdir():
        if not re.fullmatch("[0-9a-f]{16}", path.name):
            continue
        with contextlib.suppress(BlockingIOError, DirectoryError), _locked(path, wait=False):
            processes, held, temporary = _noted(path)
            ended = end_marked(processes) + end_owned(path.name)
            removed = remove_unheld(held)
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
            logger.info(
                "cleared what worker %s left behind: its directory%s%s",
                path.name,
                f", {ended} processes" if ended else "",
                f", {removed} files in /dev/shm" if removed else "",
            )


def _noted(path: Path) -> tuple[list[ProcessMark], list[SharedFile], Path | None]:
    try:
        content = json.loads((path / "engine.json").read_bytes())
        return (
            [ProcessMark(int(pid), float(since)) for pid, since in content["processes"]],
            [SharedFile(int(inode), str(name)) for inode, name in content["shared_memory"]],
            Path(content["temporary"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return [], [], None  # killed before its engine had anything
