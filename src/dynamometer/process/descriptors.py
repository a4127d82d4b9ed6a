"""Descriptors that a child of `fork` does not keep.

`O_CLOEXEC` closes a descriptor at `exec`; a child of `fork` that runs on (Python's multiprocessing)
inherits all of them. A lock that it inherits keeps a dead process alive in discovery, and a
listening socket keeps a dead process's port. A descriptor that another thread is opening at the
moment of the fork is not known yet and stays open: a lock would let a hung file system stop forks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from dynamometer.process.forks import in_child

CLOSED: Final = -1


class Closable(Protocol):
    """An object that holds descriptors."""

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""


class Descriptor:
    """A descriptor that is closed with its object, and in a child of `fork`.

    Attributes:
        number: the descriptor; `CLOSED` once it is closed.
    """

    def __init__(self, number: int) -> None:
        """Own the open descriptor `number`."""
        self.number = number
        close_in_child(self)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        number, self.number = self.number, CLOSED
        if number != CLOSED:
            os.close(number)

    __del__ = close


_Owner = TypeVar("_Owner", bound=Closable)


def close_in_child(owner: _Owner) -> _Owner:
    """Close what `owner` holds in each child of `fork`, where its copies would stay open.

    Returns:
        The same `owner`.
    """
    in_child(owner, _close)
    return owner


def _close(owner: Closable) -> None:
    with suppress(OSError):
        owner.close()
