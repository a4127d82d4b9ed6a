from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from dynamometer.frontend.canary import Canary

DELAY = "dynamo_frontend_event_loop_delay_seconds"
STALLS = "dynamo_frontend_event_loop_stall_total"


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    assert found is not None
    return found


def test_a_delay_is_what_a_sleep_took_too_long() -> None:
    registry = CollectorRegistry()
    canary = Canary(registry)
    assert value(registry, STALLS) == 0
    for seconds in (0.009, 0.010, 0.0145, 0.016, 0.110):
        canary.record(seconds)
    assert value(registry, STALLS) == 2
    assert value(registry, f"{DELAY}_count") == 5
    assert value(registry, f"{DELAY}_bucket", le="0.005") == 3
    assert value(registry, f"{DELAY}_sum") == pytest.approx(0 + 0 + 0.0045 + 0.006 + 0.1)


async def test_a_loop_that_was_held_is_seen_and_nobody_watches_afterwards() -> None:
    registry = CollectorRegistry()
    async with Canary(registry).watching(), asyncio.timeout(10):
        while not value(registry, STALLS):
            await asyncio.sleep(0.001)
            time.sleep(0.05)  # noqa: ASYNC251  # blocks the loop
        tasks = {task.get_name() for task in asyncio.all_tasks()}
        assert "the event loop canary" in tasks
    assert value(registry, f"{DELAY}_sum") > 0.005
    assert "the event loop canary" not in {task.get_name() for task in asyncio.all_tasks()}
