"""The delay of the event loop: by how much a sleep of 10 ms takes longer, five times a second.

Anything that blocks the loop (a large body, a garbage collection, a busy machine) delays every
stream, and no other family shows that delay. Five samples a second cost 0.1 % of a core; a single
short stall may fall between two of them.
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
_INTERVAL_SECONDS: Final = 0.2
_STALL_SECONDS: Final = 0.005


class Canary:
    """The families of the event loop, and the task that updates them."""

    def __init__(self, registry: CollectorRegistry, *, prefix: str = name_prefix.FRONTEND) -> None:
        """Register the families.

        Args:
            registry: the registry of the families.
            prefix: the prefix of their names.
        """
        self._delay = Histogram(
            f"{prefix}_{frontend_perf.EVENT_LOOP_DELAY_SECONDS}",
            "How much longer than 10 ms a sleep of 10 ms takes on the event loop (seconds); "
            "sampled five times a second",
            buckets=EVENT_LOOP_DELAY_BUCKETS,
            registry=registry,
        )
        self._stalls = Counter(
            f"{prefix}_{frontend_perf.EVENT_LOOP_STALL_TOTAL}",
            "Number of event loop stalls (delay > 5 ms) among the samples",
            registry=registry,
        )

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Measure the delay of the running event loop while the context is open."""
        async with restarting(self._watch, name="the event loop canary"):
            yield

    def record(self, seconds: float) -> None:
        """Record a sleep that took `seconds`; a timer may fire up to a millisecond early."""
        delay = max(0.0, seconds - _SLEEP_SECONDS)
        self._delay.observe(delay)
        if delay > _STALL_SECONDS:
            self._stalls.inc()

    async def _watch(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_SLEEP_SECONDS)
            self.record(time.perf_counter() - started)
            await asyncio.sleep(_INTERVAL_SECONDS - _SLEEP_SECONDS)
