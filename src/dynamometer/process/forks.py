"""Functions that run in a child of `fork`, for objects that the parent created.

Only the thread that called `fork` exists in the child. A lock that another thread held stays locked
in the child, and the state that the lock guards may be partly changed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

_Owner = TypeVar("_Owner")


class Renewable(Protocol):
    """An object that can replace its state by a new one."""

    def renew(self) -> None:
        """Replace all state that a thread may have used."""


# Any thread adds entries, under the interpreter's lock; only a child of `fork` reads the entries,
# and it has one thread.
_actions: Final[weakref.WeakKeyDictionary[object, Callable[[Any], None]]] = (
    weakref.WeakKeyDictionary()
)


def call_in_child(owner: _Owner, action: Callable[[_Owner], None]) -> None:
    """Call `action` with `owner` in each child of `fork` for as long as `owner` exists.

    Args:
        owner: the object; a second call with the same object replaces its action.
        action: the function; it must not hold a reference to `owner`.
    """
    _actions[owner] = action


def renew_in_child(owner: Renewable) -> None:
    """Call `owner.renew` now, and in each child of `fork`."""
    owner.renew()
    call_in_child(owner, _renew)


def _renew(owner: Renewable) -> None:
    owner.renew()


def _run_actions() -> None:
    for owner, action in list(_actions.items()):
        action(owner)


os.register_at_fork(after_in_child=_run_actions)
