"""The faults of files and series, their counts and their messages in the log.

A fault affects only the file that has it. Each reading counts it by its reason; the log reports
when it appears and when it disappears.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

logger = logging.getLogger(__name__)


class Reason(StrEnum):
    """The reason for which a file, or some of its series, is not on the page."""

    NAME = "name"  # an unknown type or mode in the file's name
    NOT_A_FILE = "not_a_file"  # a directory, a FIFO, a socket, a device
    PERMISSION = "permission"
    VANISHED = "vanished"  # removed after the directory was listed
    UNREADABLE = "unreadable"  # any other error of the operating system
    EMPTY = "empty"  # each file is empty for a moment when its process starts
    TRUNCATED = "truncated"  # shorter than its header declares
    CORRUPT = "corrupt"  # an impossible length or end
    KEY = "key"  # an entry's key is not a valid metric
    TYPE_CONFLICT = "type_conflict"  # a family with another type or mode in another file
    OVERLAP = "overlap"  # another key has the same names on the page
    MAX_SERIES = "max_series"  # more series than the page may have
    LABEL_BYTES = "label_bytes"  # a label value is too long
    NOT_REMOVED = "not_removed"  # the file of an ended process cannot be removed


# Bounds of a page: a file with such series has no fault.
_BOUNDS: Final = frozenset({Reason.MAX_SERIES, Reason.LABEL_BYTES})


class FileFault(Exception):  # noqa: N818  # caught in this package, where it is counted
    """A file cannot be read."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class OmittedError(Exception):
    """A series of a valid file cannot be on the page."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def from_os_error(error: OSError) -> FileFault:
    """Return the fault for an error of the operating system."""
    if isinstance(error, FileNotFoundError):
        return FileFault(Reason.VANISHED, "removed before it was read")
    if isinstance(error, PermissionError):
        return FileFault(Reason.PERMISSION, "no permission to read the file")
    return FileFault(Reason.UNREADABLE, str(error))


class FaultLog:
    """Counts faults by reason, and logs the appearance and the end of each."""

    def __init__(self) -> None:
        # Replaced as a whole by the thread that reads; any thread may read it.
        self._counts: Mapping[str, int] = MappingProxyType({})
        self._known: dict[tuple[str, Reason], str] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of omissions of a file or of some of its series, by reason.

        A reading replaces the mapping and never changes it.
        """
        return self._counts

    def note(self, faults: Iterable[tuple[str, Reason, str]]) -> None:
        """Count and log all faults of one reading.

        Args:
            faults: the path, the reason and the message of each.
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
                # Each file is empty for a moment after its creation.
                level = logging.INFO if reason is Reason.EMPTY else logging.WARNING
                state = "is not complete on the page" if reason in _BOUNDS else "has a fault"
                logger.log(level, "metrics file %s %s (%s): %s", path, state, reason, text)
        for path, reason in self._known.keys() - present.keys():
            if reason in _BOUNDS:
                logger.info("metrics file %s is complete on the page again (%s)", path, reason)
            else:
                logger.info("metrics file %s no longer has the fault (%s)", path, reason)
        self._known = present
