"""One of the processes of a frontend; `process_group` contains their supervisor.

An environment variable contains the descriptors of a listening socket and a channel. The process
writes its metrics into multiprocess files, and returns the supervisor's page.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass

from dynamometer.frontend.channel import ProcessEnd
from dynamometer.process.parent_death import die_with_parent
from dynamometer.variables import FRONTEND_MEMBER


@dataclass(frozen=True)
class Membership:
    """The values that the supervisor passes to a process.

    Attributes:
        number: the number of the process, from 1.
        count: the number of processes.
        supervisor: the supervisor's pid.
        listener: the descriptor of the listening socket.
        channel: the descriptor of the process's end of the channel.
    """

    number: int
    count: int
    supervisor: int
    listener: int
    channel: int

    @classmethod
    def read(cls) -> Membership | None:
        """Return the values for this process; None for a process without a supervisor."""
        value = os.environ.pop(FRONTEND_MEMBER, "")
        return cls(*map(int, value.split())) if value else None

    def __str__(self) -> str:
        return " ".join(str(value) for value in astuple(self))


@dataclass(frozen=True)
class Member:
    """The parts of a frontend that a process receives from its supervisor.

    Attributes:
        number: the number of the process, from 1.
        count: the number of processes.
        listener: the socket for requests.
        channel: the process's end of the channel to the supervisor.
    """

    number: int
    count: int
    listener: socket.socket
    channel: ProcessEnd


@asynccontextmanager
async def joined(membership: Membership) -> AsyncIterator[Member]:
    """Connect to the supervisor; the kernel kills this process when the supervisor ends.

    Args:
        membership: the values from the supervisor.
    """
    die_with_parent()
    if os.getppid() != membership.supervisor:  # the supervisor ended before the call
        os.kill(os.getpid(), signal.SIGKILL)
    listener = socket.socket(fileno=membership.listener)
    connection = socket.socket(fileno=membership.channel)
    async with ProcessEnd.connected(connection) as channel:
        yield Member(membership.number, membership.count, listener, channel)
