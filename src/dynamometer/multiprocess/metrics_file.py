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

# Opening a FIFO must not block, and a terminal must not become the process's controlling terminal.
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class MetricsFile:
    """A file, and the cells of its values.

    Attributes:
        path: the file's path.
        name: the parts of its name.
        inode: its inode number, as listed in the directory.
        content: the known content.
        value_places: int64, the places of the values that have a cell, in words of eight bytes.
        cells: int32, the cell of each of these values.
        hidden: whether its values are read but not shown: gauges of an ended process.
        omitted: by reason, the number of series that are not on the page, and a message.
    """

    def __init__(self, path: str, name: FileName, inode: int) -> None:
        """Describe a file without opening or reading it."""
        self.path = path
        self.name = name
        self.inode = inode
        self.hidden = False
        self._descriptor: Descriptor | None = None
        self._partial_key = 0  # its place at the last reading, in words; 0 for none
        self.forget()

    def forget(self) -> None:
        """Forget the content, so that the file is read again from its beginning."""
        self.content: Content = UNKNOWN
        self.value_places: NDArray[np.int64] = np.empty(0, np.int64)
        self.cells: NDArray[np.int32] = np.empty(0, np.int32)
        self.omitted: dict[Reason, tuple[int, str]] = {}

    def reset(self) -> None:
        """Forget the content and the place of a partly written key, so that parsing starts again.

        The same reading may find the partly written key once more, which is not a fault.
        """
        self.forget()
        self._partial_key = 0

    def read_new_entries(self) -> NewEntries:
        """Read the entries that are not known yet; `extend` adds them to the known content.

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

    def extend(self, content: Content, value_places: list[int], cells: list[int]) -> None:
        """Replace the known content, and add the places and cells of its new values.

        Args:
            content: the new known content.
            value_places: the places of the new values, in words.
            cells: the cell of each value.
        """
        self.content = content
        self.value_places = np.concatenate([self.value_places, np.array(value_places, np.int64)])
        self.cells = np.concatenate([self.cells, np.array(cells, np.int32)])

    def omit(self, reason: Reason, text: str) -> None:
        """Count a series that is not on the page; keep the first message of each reason."""
        count, first = self.omitted.get(reason, (0, text))
        self.omitted[reason] = count + 1, first

    def hide(self) -> None:
        """Read the values without showing them."""
        self.hidden = True
        self.cells = np.full_like(self.cells, HIDDEN)

    def show(self) -> None:
        """Show the values of a hidden file again, after the next parsing from its beginning."""
        self.reset()
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
            return file_content.read_values(descriptor, self.content)[self.value_places]

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Return the descriptor that is held open, or open the file while the context is open.

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
        # The inode number of a file that is not held open may be reused; `Content` notices this.
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
