"""How a process ends: asked by a signal, after its requests, at once when asked again."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Stop:
    """SIGINT, SIGTERM and SIGHUP (a closed terminal): the first asks, a second insists."""

    def __init__(self) -> None:
        """Take these signals of the running event loop's process; under nohup, not SIGHUP."""
        self.asked = asyncio.Event()
        self.insisted = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN and number is signal.SIGHUP:
                continue
            loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        self.insisted = self.asked.is_set()
        logger.info("%s: ending%s", number.name, " at once" if self.insisted else "")
        self.asked.set()


async def let_finish(active: Callable[[], int], stop: Stop, timeout: float) -> None:
    """Wait until no request is in flight, the time is over, or the user insists.

    Args:
        active: how many requests are in flight.
        stop: whether the user insists.
        timeout: seconds at most.
    """
    deadline = time.monotonic() + timeout
    if active():
        logger.info(
            "requests in flight: %d; they have up to %.0f s, Ctrl-C again ends them",
            active(),
            timeout,
        )
    while active() and time.monotonic() < deadline and not stop.insisted:
        await asyncio.sleep(0.02)
