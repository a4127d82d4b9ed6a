"""The files of a directory: the valid ones, the invalid ones, and those that are held open."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dynamometer.multiprocess import file_format
from dynamometer.multiprocess.faults import FileFault, Reason
from dynamometer.multiprocess.metrics_file import MetricsFile
from dynamometer.process.descriptors import CLOSED

_MAX_HELD_OPEN: Final = 512


@dataclass(frozen=True, slots=True)
class _Invalid:
    """A file that cannot be read; `file` is None where its name is not valid."""

    file: MetricsFile | None
    inode: int
    fault: FileFault


class OpenFiles:
    """All files by path.

    Attributes:
        valid: the files that are read.
    """

    def __init__(self) -> None:
        self.valid: dict[str, MetricsFile] = {}
        self._invalid: dict[str, _Invalid] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_held_open = min(_MAX_HELD_OPEN, soft // 4)
        self._held_open = 0

    @property
    def faults(self) -> list[tuple[str, Reason, str]]:
        """The faults of invalid files, and of series of valid ones."""
        files = [(path, one.fault.reason, str(one.fault)) for path, one in self._invalid.items()]
        series = [
            (path, reason, f"{count} of its series: {text}")
            for path, file in self.valid.items()
            if file.omitted
            for reason, (count, text) in file.omitted.items()
        ]
        return files + series

    @property
    def invalid(self) -> list[MetricsFile]:
        """The invalid files with a valid name, which the next reading tries again."""
        return [one.file for one in self._invalid.values() if one.file is not None]

    @property
    def paths(self) -> set[str]:
        """The paths of all files."""
        return self.valid.keys() | self._invalid.keys()

    @property
    def process_names(self) -> set[str]:
        """The identifiers of the processes of all files."""
        return {file.name.process for file in [*self.valid.values(), *self.invalid]}

    @property
    def processes(self) -> Mapping[str, list[MetricsFile]]:
        """The valid files of each process."""
        found: dict[str, list[MetricsFile]] = {}
        for file in self.valid.values():
            found.setdefault(file.name.process, []).append(file)
        return found

    def find_removed(self, listing: Mapping[str, int]) -> list[MetricsFile]:
        """Return the valid files that were removed or replaced, and are still open.

        Args:
            listing: the inode number of each file, by path.
        """
        return [
            file
            for path, file in self.valid.items()
            if path not in listing or file.replaced(listing[path])
        ]

    def follow(self, listing: Mapping[str, int]) -> list[MetricsFile]:
        """Return the new files, and forget invalid ones that were removed or replaced.

        Args:
            listing: the inode number of each file, by path.
        """
        self._invalid = {
            path: one for path, one in self._invalid.items() if listing.get(path) == one.inode
        }
        return [
            file
            for path, inode in listing.items()
            if path not in self.valid
            and path not in self._invalid
            and (file := self._create_file(path, inode)) is not None
        ]

    def accept(self, file: MetricsFile) -> None:
        """Read a file from now on, and hold it open unless too many files are held open.

        Raises:
            FileFault: The file cannot be opened again.
        """
        if file.descriptor == CLOSED and self._held_open < self._max_held_open:
            file.keep_open()
            self._held_open += 1
        self.valid[file.path] = file
        self._invalid.pop(file.path, None)

    def reject(self, file: MetricsFile, fault: FileFault) -> None:
        """Close an invalid file; none of its series is shown until it is valid again."""
        self.drop(file)
        self._invalid[file.path] = _Invalid(file, file.inode, fault)

    def drop(self, file: MetricsFile) -> None:
        """Close a file and stop reading it."""
        if file.descriptor != CLOSED:
            file.close()
            self._held_open -= 1
        self.valid.pop(file.path, None)
        self._invalid.pop(file.path, None)

    def find_by_process(self, processes: frozenset[str]) -> list[MetricsFile]:
        """Return the valid and invalid files of some processes."""
        files = [*self.valid.values(), *self.invalid]
        return [file for file in files if file.name.process in processes]

    def close(self) -> None:
        """Close all files."""
        for file in list(self.valid.values()):
            self.drop(file)

    def _create_file(self, path: str, inode: int) -> MetricsFile | None:
        try:
            return MetricsFile(path, file_format.parse_name(path), inode)
        except FileFault as fault:
            self._invalid[path] = _Invalid(None, inode, fault)
            return None
