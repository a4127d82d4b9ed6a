"""The project's own instruments: where they are collected, and those of every process."""

from __future__ import annotations

import time

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from dynamometer.names import distributed_runtime, labels, name_prefix


def registry() -> CollectorRegistry:
    """A registry for the project's own instruments, without `_created` series."""
    prometheus_client.disable_created_metrics()
    return CollectorRegistry(auto_describe=False)


def process_metrics(instruments: CollectorRegistry, worker_id: str) -> None:
    """Register what every process shows: its uptime, and the `process_*` families.

    Args:
        instruments: where they are collected.
        worker_id: the process's id, hexadecimal.
    """
    begun = time.monotonic()
    uptime = Gauge(
        f"{name_prefix.COMPONENT}_{distributed_runtime.UPTIME_SECONDS}",
        "Total uptime of the DistributedRuntime in seconds",
        (labels.WORKER_ID,),
        registry=instruments,
    )
    uptime.labels(worker_id).set_function(lambda: time.monotonic() - begun)
    ProcessCollector(registry=instruments)
