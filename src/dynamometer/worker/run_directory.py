"""The directories of a worker, and their removal after a worker was killed.

    <memory>/<id>/engine.json   the engine's processes, the shared memory that they map, and the
                                path of the directory for temporary files
                  control       the socket of `dyno drain`
                  metrics/      the engine's multiprocess files
                  plugin/       the plugin with the CPU platform, if the engine needs it

A worker locks its directory (flock). A worker that starts and finds a directory without a lock
kills the processes that `engine.json` lists, and removes their shared memory and the directory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from dynamometer.process import private_directories
from dynamometer.process.children import ProcessIdentity, kill_identified
from dynamometer.process.locked_directories import locked_directory
from dynamometer.process.shared_memory import SharedFile, remove_unmapped
from dynamometer.runtime.identity import hexadecimal
from dynamometer.worker.process_tree import kill_owned

logger = logging.getLogger(__name__)

_NAMES: Final = re.compile("[0-9a-f]{16}")


class RunDirectory:
    """The directories of a worker.

    Attributes:
        path: the directory on tmpfs.
        temporary: the parent of the engine's directories for temporary files, on disk. Its path is
            short, because the engine creates sockets there.
        mark: the text that marks the engine's processes.
    """

    def __init__(self, path: Path, temporary: Path) -> None:
        self.path = path
        self.mark = _mark(path)
        self.temporary = temporary
        self._runs = 0
        self.record(frozenset(), frozenset())

    def record(
        self, processes: frozenset[ProcessIdentity], shared_files: frozenset[SharedFile]
    ) -> None:
        """Record what the next worker must kill and remove if this worker is killed.

        Args:
            processes: the processes of the engine.
            shared_files: the files in /dev/shm that the processes map.
        """
        content = {
            "processes": sorted(processes),
            "shared_memory": sorted(shared_files),
            "temporary": str(self.temporary),
        }
        new_file = self.path / "engine.json.new"
        # If the tmpfs is full, the worker continues and the file keeps its previous content.
        with contextlib.suppress(OSError):
            new_file.write_text(json.dumps(content), encoding="utf-8")
            new_file.replace(self.path / "engine.json")

    def create_temporary(self) -> Path:
        """Create the directory for temporary files of one run of the engine; this call blocks.

        Raises:
            OSError: The directory cannot be created.
        """
        self._runs += 1
        path = self.temporary / str(self._runs)
        path.mkdir(mode=0o700, parents=True)
        return path


@contextmanager
def run_directory(instance_id: int) -> Iterator[RunDirectory]:
    """Remove the leftovers of killed workers, then keep the directories of this worker.

    The directories exist until the context ends.

    Raises:
        DirectoryError: A directory cannot be created, or a live worker has the same id.
    """
    base = private_directories.create_memory()
    with ExitStack() as stack:
        path = stack.enter_context(
            locked_directory(
                base,
                hexadecimal(instance_id),
                leftovers=_NAMES,
                clear=_clear_after_killed,
                in_use=f"another worker with the id {hexadecimal(instance_id)} is running: end "
                "that worker first, or choose another --worker-id",
            )
        )
        temporary = private_directories.create_temporary("dyno-")
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        yield RunDirectory(path, temporary)


def _clear_after_killed(path: Path) -> None:
    processes, shared_files, temporary = _read_record(path)
    # `kill_owned` is first: it finds sessions by processes that `kill_identified` may kill.
    killed = kill_owned(_mark(path)) + kill_identified(processes)
    removed = remove_unmapped(shared_files)
    if temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info(
        "removed after the killed worker %s: its directory%s%s",
        path.name,
        f", processes: {killed}" if killed else "",
        f", files in /dev/shm: {removed}" if removed else "",
    )


def _mark(path: Path) -> str:
    """Return the text that marks the processes of the worker that owns the directory `path`.

    The number of the worker is not enough: in another container a live worker may have the same
    --worker-id.
    """
    status = path.lstat()
    return f"{path.name}-{status.st_dev:x}-{status.st_ino:x}"


def _read_record(path: Path) -> tuple[list[ProcessIdentity], list[SharedFile], Path | None]:
    try:
        content = json.loads((path / "engine.json").read_bytes())
        return (
            [ProcessIdentity(int(pid), str(start)) for pid, start in content["processes"]],
            [SharedFile(int(inode), str(name)) for inode, name in content["shared_memory"]],
            Path(content["temporary"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return [], [], None  # the worker was killed before it wrote the file
