"""Actions of a child of `fork` on the objects of its parent.

Only the thread that forked exists in the child. A lock that another thread held stays locked, and
the state that the lock guards may be partly changed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

_Owner = TypeVar("_Owner")


class Renewable(Protocol):
    """An object that can start with fresh state."""

    def renew(self) -> None:
        """Replace all state that a thread may have used."""


# Any thread adds entries, under the interpreter's lock; only a child with one thread reads them.
_actions: Final[weakref.WeakKeyDictionary[object, Callable[[Any], None]]] = (
    weakref.WeakKeyDictionary()
)


def in_child(owner: _Owner, action: Callable[[_Owner], None]) -> None:
    """Call `action` with `owner` in each child of `fork` for as long as `owner` exists.

    Args:
        owner: the object; a second call replaces the action of the object.
        action: the function; it must not hold a reference to `owner`.
    """
    _actions[owner] = action


def renew_in_child(owner: Renewable) -> None:
    """Call `owner.renew` now, and in each child of `fork`."""
    owner.renew()
    in_child(owner, _renew)


def _renew(owner: Renewable) -> None:
    owner.renew()


def _act() -> None:
    for owner, action in list(_actions.items()):
        action(owner)


os.register_at_fork(after_in_child=_act)
