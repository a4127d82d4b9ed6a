"""Waiting in tests: for a condition, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, within: float = 10) -> None:
    """Wait until `condition()` is true; raise `TimeoutError` after `within` seconds."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


async def run_ready_tasks() -> None:
    """Let all tasks run until each waits for a timer, a thread or the network."""
    for _ in range(100):
        await asyncio.sleep(0)
