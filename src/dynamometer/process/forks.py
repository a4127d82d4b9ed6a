"""State that a child of `fork` renews.

Only the thread that forks exists in the child: a lock that another thread held stays locked, and
the state behind the lock may be half changed.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Renewable(Protocol):
    """An object that can start with fresh state."""

    def renew(self) -> None:
        """Start with a state that no thread has used."""


# Any thread adds to it, under the interpreter's lock; only a child that has one thread reads it.
_owners: Final[weakref.WeakSet[Renewable]] = weakref.WeakSet()


def renew_in_child(owner: Renewable) -> None:
    """Call `owner.renew` now, and in each child of `fork`."""
    owner.renew()
    _owners.add(owner)


def _renew_all() -> None:
    for owner in list(_owners):
        owner.renew()


os.register_at_fork(after_in_child=_renew_all)
