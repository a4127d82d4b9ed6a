"""The contract of a discovery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from dynamometer.runtime.record import Record

# The time for which discovery remembers a process that ended without withdrawing its record.
VANISHED_SECONDS: Final = 900.0
# The time within which live processes write their records again after the registry was emptied.
RESTORE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Processes:
    """The processes that discovery shows at one time.

    The registry distinguishes a clean end, in which a process removes its own record, from all
    others, in which the registry finds a record without its owner: a lock that is free, or a
    lifetime that has expired. No reader needs to have seen the process alive.

    Attributes:
        live: the records of all live processes.
        vanished: the last records of the processes that ended without withdrawing their records
            during the last `VANISHED_SECONDS`, in the order of their ends. A process whose id
            another live process has, or whose page's address another process had later, is not
            among them.
    """

    live: frozenset[Record] = frozenset()
    vanished: tuple[Record, ...] = ()


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

    @property
    def restored_at(self) -> float:
        """The time, by `time.monotonic`, when this process last restored a removed record.

        Records of other live processes can be missing until `RESTORE_SECONDS` later. The time is
        `-inf` if no record was removed.
        """

    def register(self, record: Record) -> AbstractAsyncContextManager[Registration]:
        """Keep `record` visible while the context is open and the process lives.

        The end of the context withdraws the record: the process has ended cleanly. If an
        `Exception` ends the context, the process counts as vanished, like a killed process.

        Raises:
            DiscoveryError: The registry cannot be written; the message names its location.
        """

    def watch(self) -> AsyncIterator[frozenset[Record]]:
        """Yield the records of all live processes: once at the start, then after each change.

        While the registry cannot be read, the iterator waits.
        """

    async def processes(self) -> Processes:
        """Return the live processes and those that vanished, from a reading that starts now.

        Raises:
            DiscoveryError: The registry cannot be read or does not answer; the message names it.
        """

    async def records(self) -> frozenset[Record]:
        """Return the records of all live processes; the same object if no record changed.

        Raises:
            DiscoveryError: The registry cannot be read or does not answer; the message names it.
        """
