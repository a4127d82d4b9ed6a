"""What a child of `fork` does with the objects of its parent.

Only the thread that forks exists in the child: a lock that another thread held stays locked, and
the state behind the lock may be half changed.
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
        """Start with a state that no thread has used."""


# Any thread adds to it, under the interpreter's lock; only a child that has one thread reads it.
_actions: Final[weakref.WeakKeyDictionary[object, Callable[[Any], None]]] = (
    weakref.WeakKeyDictionary()
)


def in_child(owner: _Owner, action: Callable[[_Owner], None]) -> None:
    """Call `action` with `owner`, as long as that exists, in each child of `fork`.

    Args:
        owner: the object; an object has one action.
        action: holds no reference to `owner`.
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
