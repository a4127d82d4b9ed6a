"""The files of a directory: which are good, which are bad, which are held open."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dynamometer.multiprocess import file_format
from dynamometer.multiprocess.faults import FileFault, Reason
from dynamometer.multiprocess.metrics_file import MultiprocessFile
from dynamometer.process.descriptors import CLOSED

_MOST_HELD: Final = 512
# A file with such a fault is worth parsing again only when its content is another.
_BY_CONTENT: Final = frozenset({Reason.KEY, Reason.CORRUPT})


@dataclass(slots=True)
class _BadFile:
    file: MultiprocessFile | None
    inode: int
    fault: FileFault
    fingerprint: int | None


class OpenFiles:
    """The files that are read, and those that cannot be."""

    def __init__(self) -> None:
        self.good: dict[str, MultiprocessFile] = {}
        self._bad: dict[str, _BadFile] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_held = min(_MOST_HELD, soft // 4)
        self._held = 0

    @property
    def faults(self) -> list[tuple[str, Reason, str]]:
        """What is wrong with each bad file, and with parts of good ones."""
        bad = [(path, bad.fault.reason, str(bad.fault)) for path, bad in self._bad.items()]
        parts = [
            (path, reason, f"{count} of its series: {text}")
            for path, file in self.good.items()
            if file.left_out
            for reason, (count, text) in file.left_out.items()
        ]
        return bad + parts

    def bad_files(self) -> list[MultiprocessFile]:
        """The bad files that may have become good, to be tried again."""
        return [
            bad.file for bad in self._bad.values() if bad.file is not None and _may_be_good(bad)
        ]

    @property
    def paths(self) -> set[str]:
        """The paths of the good files and the bad ones."""
        return self.good.keys() | self._bad.keys()

    @property
    def names(self) -> set[str]:
        """The processes of the good files and the bad ones."""
        bad = {bad.file.name.process for bad in self._bad.values() if bad.file is not None}
        return bad | {file.name.process for file in self.good.values()}

    @property
    def processes(self) -> Mapping[str, list[MultiprocessFile]]:
        """The good files of each process."""
        found: dict[str, list[MultiprocessFile]] = {}
        for file in self.good.values():
            found.setdefault(file.name.process, []).append(file)
        return found

    def ended(self, listing: Mapping[str, int]) -> list[MultiprocessFile]:
        """The good files that went or were replaced, still open; `give_up` is next.

        Args:
            listing: the inode number of each file, by path.
        """
        return [
            file
            for path, file in self.good.items()
            if path not in listing or file.replaced(listing[path])
        ]

    def follow(self, listing: Mapping[str, int]) -> list[MultiprocessFile]:
        """The new files; bad ones that went or were replaced are forgotten.

        Args:
            listing: the inode number of each file, by path.
        """
        self._bad = {path: bad for path, bad in self._bad.items() if listing.get(path) == bad.inode}
        return [
            file
            for path, inode in listing.items()
            if path not in self.good
            and path not in self._bad
            and (file := self._named(path, inode)) is not None
        ]

    def accept(self, file: MultiprocessFile) -> None:
        """A file has been read well; hold it open where there is room.

        Raises:
            FileFault: it cannot be opened again.
        """
        if file.descriptor == CLOSED and self._held < self._most_held:
            file.keep_open()
            self._held += 1
        self.good[file.path] = file
        self._bad.pop(file.path, None)

    def reject(self, file: MultiprocessFile, fault: FileFault) -> None:
        """A file is bad: nothing of it is shown until it is good again."""
        fingerprint = None
        if fault.reason in _BY_CONTENT:
            fingerprint = _fingerprint(file)
        self.give_up(file)
        file.forget()
        self._bad[file.path] = _BadFile(file, file.inode, fault, fingerprint)

    def give_up(self, file: MultiprocessFile) -> None:
        """Close a file and read it no more."""
        if file.descriptor != CLOSED:
            file.close()
            self._held -= 1
        self.good.pop(file.path, None)
        self._bad.pop(file.path, None)

    def of_processes(self, processes: frozenset[str]) -> list[MultiprocessFile]:
        """The files of these processes, the bad ones too."""
        bad = [bad.file for bad in self._bad.values() if bad.file is not None]
        return [file for file in [*self.good.values(), *bad] if file.name.process in processes]

    def close(self) -> None:
        """Close all files."""
        for file in list(self.good.values()):
            self.give_up(file)

    def _named(self, path: str, inode: int) -> MultiprocessFile | None:
        try:
            return MultiprocessFile(path, file_format.parse_name(path), inode)
        except FileFault as fault:
            self._bad[path] = _BadFile(None, inode, fault, None)
            return None


def _may_be_good(bad: _BadFile) -> bool:
    assert bad.file is not None
    return bad.fingerprint is None or _fingerprint(bad.file) != bad.fingerprint


def _fingerprint(file: MultiprocessFile) -> int | None:
    try:
        return file.fingerprint()
    except FileFault:
        return None


def unlink(file: MultiprocessFile) -> bool:
    """Remove a file of an ended process; return False where somebody else had removed it.

    Raises:
        FileFault: The file is still there.
    """
    try:
        Path(file.path).unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileFault(Reason.NOT_REMOVED, str(error)) from None
    return True
