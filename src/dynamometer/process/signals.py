"""How a process ends: asked by a signal, after its requests, at once when asked again."""

from __future__ import annotations

import asyncio
import logging
import signal

from dynamometer.process import tasks

logger = logging.getLogger(__name__)


class Stop:
    """SIGINT, SIGTERM and SIGHUP (a closed terminal): the first asks, a second insists."""

    def __init__(self) -> None:
        """Take these signals of the running event loop's process; under nohup, not SIGHUP."""
        self.requested = asyncio.Event()
        self.immediate = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN and number is signal.SIGHUP:
                continue
            loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        if self.requested.is_set():
            self.immediate.set()
        logger.info("%s: ending%s", number.name, " at once" if self.requested.is_set() else "")
        self.requested.set()


class InFlight:
    """The requests in flight of a process: enter it for each, and wait until there is none."""

    def __init__(self) -> None:
        """No request is in flight."""
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self.count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self._none.set()

    async def drain(self, stop: Stop, timeout: float) -> None:
        """Wait until no request is in flight, the time is over, or the user insists.

        Args:
            stop: whether the user insists.
            timeout: seconds at most.
        """
        if not self.count:
            return
        logger.info(
            "requests in flight: %d; they have up to %.0f s, Ctrl-C again ends them",
            self.count,
            timeout,
        )
        finished = asyncio.create_task(self._none.wait())
        try:
            async with asyncio.timeout(timeout):
                await tasks.first_of(stop.immediate, finished)
        except TimeoutError:
            pass
        finally:
            await tasks.end(finished)
