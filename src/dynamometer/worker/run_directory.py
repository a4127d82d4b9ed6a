"""The directories of a worker, and their removal after a worker was killed.

    <memory>/<id>/engine.json   the engine's processes, the shared memory that they map, and the
                                directory of its temporary files
                  metrics/      the engine's multiprocess files
                  plugin/       the CPU platform, if it is used

A worker locks its directory (flock). A worker that starts and finds a directory without a lock
kills the processes that `engine.json` lists, and removes their shared memory and the directory.
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
from dynamometer.process.children import ProcessIdentity, kill_identified
from dynamometer.process.descriptors import Descriptor
from dynamometer.process.shared_memory import SharedFile, remove_unmapped
from dynamometer.runtime.identity import hexadecimal
from dynamometer.worker.process_tree import kill_owned

logger = logging.getLogger(__name__)


class RunDirectory:
    """The directories of a worker.

    Attributes:
        path: the directory on tmpfs.
        temporary: the engine's directory for temporary files, on disk. Its path is short, because
            the engine creates sockets in it.
    """

    def __init__(self, path: Path, temporary: Path) -> None:
        self.path = path
        self.temporary = temporary
        self.record(frozenset(), frozenset())

    def record(self, processes: frozenset[ProcessIdentity], held: frozenset[SharedFile]) -> None:
        """Write the processes and files that the next worker removes if this one is killed."""
        content = {
            "processes": sorted(processes),
            "shared_memory": sorted(held),
            "temporary": str(self.temporary),
        }
        fresh = self.path / "engine.json.new"
        # A full tmpfs must not end a worker: the file keeps its previous content.
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(content), encoding="utf-8")
            fresh.replace(self.path / "engine.json")


@contextmanager
def run_directory(instance_id: int) -> Iterator[RunDirectory]:
    """Create the directories of this worker, and remove them at the end of the context.

    The directories, processes and files of killed workers are removed first.

    Raises:
        DirectoryError: A directory cannot be created.
    """
    base = private_directories.create_memory()
    path = base / hexadecimal(instance_id)
    with ExitStack() as stack:
        try:
            # A new directory has no lock of its own yet, so one worker at a time creates one.
            with _locked(base, wait=True):
                _clear_leftovers(base)
                stack.callback(_remove_if_empty, base)
                private_directories.create(path)
                stack.enter_context(_locked(path, wait=False))
        except OSError as error:
            raise DirectoryError(f"cannot create the directory {path}: {error.strerror}") from None
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        temporary = private_directories.create_temporary("dyno-")
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        yield RunDirectory(path, temporary)


def _remove_if_empty(base: Path) -> None:
    with contextlib.suppress(OSError):
        base.rmdir()  # fails while another worker has a directory in it


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of the directory `path`, which is created if it is missing.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is false.
    """
    while True:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        lock = Descriptor(os.open(private_directories.create(path), flags))
        try:
            fcntl.flock(lock.number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Another worker may have removed the directory before the lock was taken.
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
            processes, held, temporary = _read_record(path)
            # First: recorded processes may be the only ones that show the engine's session.
            ended = kill_owned(path.name) + kill_identified(processes)
            removed = remove_unmapped(held)
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
            logger.info(
                "removed after the killed worker %s: its directory%s%s",
                path.name,
                f", {ended} processes" if ended else "",
                f", {removed} files in /dev/shm" if removed else "",
            )


def _read_record(path: Path) -> tuple[list[ProcessIdentity], list[SharedFile], Path | None]:
    try:
        content = json.loads((path / "engine.json").read_bytes())
        return (
            [ProcessIdentity(int(pid), float(since)) for pid, since in content["processes"]],
            [SharedFile(int(inode), str(name)) for inode, name in content["shared_memory"]],
            Path(content["temporary"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return [], [], None  # the worker was killed before it wrote the file
