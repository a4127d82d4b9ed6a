"""Where instances are found.

A discovery knows which processes are alive: each registers itself and is withdrawn when it
ends, however it ends; a frontend watches. Variants: `file` (one machine, locks), later
`nats` (many machines, a key-value bucket with a time to live).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from dynamometer.runtime.record import Record


class Registration(Protocol):
    """A process's own record, while it is registered."""

    async def update(self, record: Record) -> None:
        """Put `record` in place of the one before; readers see one or the other, whole.

        Raises:
            DiscoveryError: the place of registration cannot be written; names it.
        """


class Discovery(Protocol):
    """What every variant promises; tests/runtime/test_discovery.py holds each one to it."""

    def register(self, record: Record) -> AbstractAsyncContextManager[Registration]:
        """Keep `record` visible while the context is open, and no longer than the process.

        Raises:
            DiscoveryError: the place of registration cannot be written; names it.
        """

    def watch(self) -> AsyncIterator[frozenset[Record]]:
        """Iterate over the sets of all live processes: now, and after each change.

        A fault of the discovery yields nothing: the last set stands until it is over.
        """

    async def records(self) -> frozenset[Record]:
        """Return all processes that are alive now; the same object where nothing changed.

        Raises:
            DiscoveryError: the discovery cannot be read, or does not answer; names it.
        """
