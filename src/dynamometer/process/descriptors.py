"""File descriptors that a child of `fork` closes.

`O_CLOEXEC` closes a descriptor at `exec`, but a child of `fork` that does not call `exec`
(Python's multiprocessing) inherits all descriptors. An inherited lock keeps a dead process
registered in discovery, and an inherited socket keeps the port of a dead process in use.

A descriptor that another thread opens during the fork stays open in the child. A lock around each
`open` would prevent that, but then a fork would wait for an `open` on a file system that hangs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from dynamometer.process.forks import call_in_child

CLOSED: Final = -1


class Closable(Protocol):
    """An object that holds descriptors."""

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""


class Descriptor:
    """A descriptor that is closed when its object is deleted, and in each child of `fork`.

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
    """Call `owner.close` in each child of `fork`, so that the child keeps no copies open.

    Returns:
        The same `owner`.
    """
    call_in_child(owner, _close)
    return owner


def _close(owner: Closable) -> None:
    with suppress(OSError):
        owner.close()
