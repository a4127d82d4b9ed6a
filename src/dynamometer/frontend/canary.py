"""How late the event loop is: a sleep of 10 ms, again and again, and how much longer it took.

What holds the loop (a large body, a collection of garbage, a machine that has other things to
do) delays every stream by as much; nothing else on the page shows that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from dynamometer.metrics.buckets import EVENT_LOOP_DELAY_BUCKETS
from dynamometer.names import frontend_perf, name_prefix
from dynamometer.process.tasks import restarting

_SLEEP_SECONDS: Final = 0.01
_STALL_SECONDS: Final = 0.005


class Canary:
    """The families of the event loop, and what moves them."""

    def __init__(self, registry: CollectorRegistry, *, prefix: str = name_prefix.FRONTEND) -> None:
        """Register the families.

        Args:
            registry: where they are collected.
            prefix: what their names begin with.
        """
        self._delay = Histogram(
            f"{prefix}_{frontend_perf.EVENT_LOOP_DELAY_SECONDS}",
            "How much longer than 10 ms a sleep of 10 ms takes on the event loop (seconds)",
            buckets=EVENT_LOOP_DELAY_BUCKETS,
            registry=registry,
        )
        self._stalls = Counter(
            f"{prefix}_{frontend_perf.EVENT_LOOP_STALL_TOTAL}",
            "Number of event loop stalls (delay > 5 ms)",
            registry=registry,
        )

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch this event loop while the context is open."""
        async with restarting(self._watch, name="event loop canary"):
            yield

    def took(self, seconds: float) -> None:
        """A sleep has taken `seconds`; timers in whole milliseconds may come a little early."""
        delay = max(0.0, seconds - _SLEEP_SECONDS)
        self._delay.observe(delay)
        if delay > _STALL_SECONDS:
            self._stalls.inc()

    async def _watch(self) -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(_SLEEP_SECONDS)
            self.took(time.perf_counter() - begun)
