"""Signals that end a process: the first lets requests in flight finish, the second does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

from dynamometer.process import tasks

logger = logging.getLogger(__name__)


class Stop:
    """The request to end the process, by SIGINT, SIGTERM or SIGHUP (a closed terminal).

    Attributes:
        requested: set by the first signal.
        immediate: set by the second signal.
    """

    def __init__(self, *, supervised: bool = False) -> None:
        """Handle the signals on the running event loop; SIGHUP stays ignored under nohup.

        Args:
            supervised: ignore all signals after the first: a supervisor ends this process at once
                with SIGKILL, and may send the first signal to a process that has it already. The
                supervisor logs the signal.
        """
        self._supervised = supervised
        self.requested = asyncio.Event()
        self.immediate = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN and number is signal.SIGHUP:
                continue
            loop.add_signal_handler(number, self._receive, number)

    async def delay(self, seconds: float) -> None:
        """Wait for `seconds`, or until a second signal arrives."""
        if seconds:
            logger.info("waiting %.1f s (--drain-delay); Ctrl-C again ends now", seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.immediate.wait()

    def _receive(self, number: signal.Signals) -> None:
        if self.requested.is_set():
            if self._supervised:
                return
            self.immediate.set()
        level = logging.DEBUG if self._supervised else logging.INFO
        at_once = " at once" if self.requested.is_set() else ""
        logger.log(level, "%s: ending%s", number.name, at_once)
        self.requested.set()


class InFlight:
    """The number of requests in flight; each request runs inside this context manager."""

    def __init__(self) -> None:
        self.count = 0
        self._all_finished = asyncio.Event()
        self._all_finished.set()

    def __enter__(self) -> None:
        self.count += 1
        self._all_finished.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self._all_finished.set()

    async def drain(self, stop: Stop, timeout: float) -> None:
        """Wait until no request is in flight, `timeout` has passed, or a second signal arrives.

        The log has the number of the requests that are still in flight then.

        Args:
            stop: the signals.
            timeout: the longest time to wait, in seconds.
        """
        if not self.count:
            return
        logger.info(
            "requests in flight: %d; waiting up to %.0f s for them, Ctrl-C again ends them now",
            self.count,
            timeout,
        )
        finished = asyncio.create_task(self._all_finished.wait())
        try:
            async with asyncio.timeout(timeout):
                await tasks.first_of(stop.immediate, finished)
        except TimeoutError:
            pass
        finally:
            await tasks.end(finished)
        if self.count:
            logger.warning("requests broken off: %d", self.count)
