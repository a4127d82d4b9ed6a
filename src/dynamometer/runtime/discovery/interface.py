"""The contract of a discovery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from dynamometer.runtime.record import Record


class Registration(Protocol):
    """The registration of this process, which holds its record."""

    async def update(self, record: Record) -> None:
        """Replace the record by `record`; readers see either the old or the new record.

        Do nothing after the context of `Discovery.register` was left: a late write must not show a
        process again that has left.

        Raises:
            DiscoveryError: The registry cannot be written; the message names its location.
        """


class Discovery(Protocol):
    """The contract of every variant; tests/runtime/test_discovery.py runs against each variant."""

    @property
    def fault(self) -> str:
        """The error of the last reading, which names the registry; empty if there was none."""

    def register(self, record: Record) -> AbstractAsyncContextManager[Registration]:
        """Keep `record` visible while the context is open and the process lives.

        Raises:
            DiscoveryError: The registry cannot be written; the message names its location.
        """

    def watch(self) -> AsyncIterator[frozenset[Record]]:
        """Yield the records of all live processes: once at the start, then after each change.

        While the registry cannot be read, the iterator waits.
        """

    async def records(self) -> frozenset[Record]:
        """Return the records of all live processes; the same object if no record changed.

        Raises:
            DiscoveryError: The registry cannot be read or does not answer; the message names it.
        """
