"""What can be wrong with a directory's files, and how it is counted and said.

A fault costs the file it is in and nothing else. It is counted at each reading, by its
reason, and logged when it begins and when it ends.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

logger = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a file, or some of its series, is not on the page."""

    NAME = "name"  # an unknown type or mode in the file's name
    NOT_A_FILE = "not_a_file"  # a directory, a FIFO, a socket, a device
    PERMISSION = "permission"
    VANISHED = "vanished"  # removed between listing and reading
    UNREADABLE = "unreadable"  # any other error of the operating system
    EMPTY = "empty"  # as each file is for a moment at its process's start
    TRUNCATED = "truncated"  # shorter than what it says is used
    CORRUPT = "corrupt"  # a length that lies
    KEY = "key"  # an entry's key is no metric
    TYPE_CONFLICT = "type_conflict"  # another file has the family with another type or mode
    OVERLAP = "overlap"  # another key is written as the same series
    MAX_SERIES = "max_series"  # the page has no room for more series
    NOT_REMOVED = "not_removed"  # an ended process's file could not be unlinked


class FileFault(Exception):  # noqa: N818  # never leaves this package: not an error of a user's
    """A file cannot be read; it costs only itself."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class OmittedError(Exception):
    """An entry has no place on the page, though its file is good."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def of_os_error(error: OSError) -> FileFault:
    """The fault that an error of the operating system means."""
    if isinstance(error, FileNotFoundError):
        return FileFault(Reason.VANISHED, "removed before it was read")
    if isinstance(error, PermissionError):
        return FileFault(Reason.PERMISSION, "no permission to read it")
    return FileFault(Reason.UNREADABLE, str(error))


class FaultLog:
    """Counts faults by reason, and logs each one's beginning and end with the file's name."""

    def __init__(self) -> None:
        # Replaced as a whole by the thread that reads; any thread may read it.
        self._counts: Mapping[str, int] = MappingProxyType({})
        self._known: dict[tuple[str, Reason], str] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """How often a file or a part of it was left out, by reason; a mapping never changes."""
        return self._counts

    def note(self, faults: Iterable[tuple[str, Reason, str]]) -> None:
        """Take in all faults of one reading.

        Args:
            faults: the path, the reason, and what exactly is wrong, of each.
        """
        present: dict[tuple[str, Reason], str] = {}
        counts = Counter(self._counts)
        for path, reason, text in faults:
            counts[reason.value] += 1
            present[path, reason] = text
        if present:
            self._counts = MappingProxyType(counts)
        for (path, reason), text in present.items():
            if (path, reason) not in self._known:
                # Every file is empty for a moment: nothing to wake anybody for.
                level = logging.INFO if reason is Reason.EMPTY else logging.WARNING
                logger.log(level, "metrics of %s are left out (%s): %s", path, reason, text)
        for path, reason in self._known.keys() - present.keys():
            logger.info("metrics of %s are no longer left out (%s)", path, reason)
        self._known = present
