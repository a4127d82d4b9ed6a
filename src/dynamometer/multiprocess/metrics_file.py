"""One multiprocess file: its descriptor, its known content, and the cells of its values.

Files are read and never mapped: a mapped file that is truncated kills its reader (SIGBUS), and a
read returns fewer bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynamometer.multiprocess import file_content
from dynamometer.multiprocess.cells import HIDDEN
from dynamometer.multiprocess.faults import FileFault, Reason, from_os_error
from dynamometer.multiprocess.file_content import UNKNOWN, Content, NewEntries
from dynamometer.multiprocess.file_format import WORD_BYTES, FileName
from dynamometer.process.descriptors import CLOSED, Descriptor

# Opening a FIFO must not block the reader, and a terminal must not become its own.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class MetricsFile:
    """A file, and where its values belong.

    Attributes:
        path: the file's path.
        name: the parts of its name.
        inode: its inode number in the directory.
        content: the known content.
        values: int64, the places of the values that have a cell, in words of eight bytes.
        cells: int32, the cell of each of these values.
        hidden: whether its values are read but not shown: gauges of an ended process.
        omitted: the number of series that are not on the page, and a message, by reason.
    """

    def __init__(self, path: str, name: FileName, inode: int) -> None:
        """Describe a file without opening or reading it."""
        self.path = path
        self.name = name
        self.inode = inode
        self.hidden = False
        self._descriptor: Descriptor | None = None
        self._partial_key = 0
        self.forget()

    def forget(self) -> None:
        """Forget the content, so that the file is read again from its beginning."""
        self.content: Content = UNKNOWN
        self.values: NDArray[np.int64] = np.empty(0, np.int64)
        self.cells: NDArray[np.int32] = np.empty(0, np.int32)
        self.omitted: dict[Reason, tuple[int, str]] = {}

    def read_again(self) -> None:
        """Forget the content and a partly written key, which this reading may read twice."""
        self.forget()
        self._partial_key = 0

    def read_new_entries(self) -> NewEntries:
        """Read the entries that are not known yet; `extend` makes them known.

        Raises:
            FileFault: The file cannot be read, its content is not valid, or a key is partly
                written in two readings.
        """
        with self.opened() as descriptor:
            held_open = self.descriptor != CLOSED
            found = file_content.read_new_entries(descriptor, self.content, held_open=held_open)
        if found.partial_key:
            if found.partial_key == self._partial_key:
                place = found.partial_key * WORD_BYTES
                raise FileFault(Reason.KEY, f"an incomplete key at byte {place}")
            self._partial_key = found.partial_key
        return found

    def extend(self, content: Content, values: list[int], cells: list[int]) -> None:
        """Take the new content, and the cells of its new values.

        Args:
            content: the content that is known now.
            values: the places of the new values, in words.
            cells: the cell of each.
        """
        self.content = content
        self.values = np.concatenate([self.values, np.array(values, np.int64)])
        self.cells = np.concatenate([self.cells, np.array(cells, np.int32)])

    def omit(self, reason: Reason, text: str) -> None:
        """Count a series that is not on the page."""
        count, first = self.omitted.get(reason, (0, text))
        self.omitted[reason] = count + 1, first

    def hide(self) -> None:
        """Read the values without showing them."""
        self.hidden = True
        self.cells = np.full_like(self.cells, HIDDEN)

    def show(self) -> None:
        """Show the values of a hidden file again, once it is read from its beginning."""
        self.read_again()
        self.hidden = False

    def has_known_keys(self, descriptor: int) -> bool:
        """Return whether an opened file has the known keys; a file held open is the same file."""
        if self.descriptor != CLOSED:
            return True
        verified = self.content.verify(descriptor)
        if verified is not None:
            self.content = verified
        return verified is not None

    def last_values(self) -> NDArray[np.float64]:
        """Read the values that have cells, in the order of `cells`.

        Raises:
            FileFault: The file cannot be read, or is shorter.
        """
        with self.opened() as descriptor:
            return file_content.read_values(descriptor, self.content)[self.values]

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Return the descriptor that is held open, or one for the time of the context.

        Raises:
            FileFault: The file cannot be opened, or is not a regular file.
        """
        if self.descriptor != CLOSED:
            yield self.descriptor
            return
        descriptor = _open(self.path)
        try:
            yield descriptor.number
        finally:
            descriptor.close()

    @property
    def descriptor(self) -> int:
        """The descriptor that is held open, else `CLOSED`."""
        return CLOSED if self._descriptor is None else self._descriptor.number

    def keep_open(self) -> None:
        """Hold the file open until `close`.

        Raises:
            FileFault: The file cannot be opened, or is not a regular file.
        """
        if self.descriptor == CLOSED:
            self._descriptor = _open(self.path)

    def close(self) -> None:
        """Close the descriptor that is held open."""
        if self._descriptor is not None:
            self._descriptor.close()
            self._descriptor = None

    def replaced(self, inode: int) -> bool:
        """Return whether the directory has another file at this path.

        Args:
            inode: the inode number in the directory.
        """
        if inode != self.inode:
            return True
        # The number of a file that is not open may be used again: then the marks differ.
        return self.descriptor != CLOSED and os.fstat(self.descriptor).st_nlink == 0

    def unlink(self) -> bool:
        """Remove the file; return False where another process had removed it.

        Raises:
            FileFault: The file cannot be removed.
        """
        try:
            Path(self.path).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FileFault(Reason.NOT_REMOVED, str(error)) from None
        return True


def _open(path: str) -> Descriptor:
    try:
        descriptor = Descriptor(os.open(path, _FLAGS))
    except OSError as error:
        found = Path(path)
        if found.exists() and not found.is_file():
            raise _not_a_file() from None
        raise from_os_error(error) from None
    if not stat.S_ISREG(os.fstat(descriptor.number).st_mode):
        descriptor.close()
        raise _not_a_file()
    return descriptor


def _not_a_file() -> FileFault:
    return FileFault(Reason.NOT_A_FILE, "not a regular file")
