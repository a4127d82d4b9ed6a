"""Measure the cost of discovery and routing: `python benchmarks/discovery.py [WORKERS ...]`.

The figures for each number of workers are medians of several rounds: one reading of the directory
(a frontend reads the directory ten times a second), the same reading with every record parsed
again, one update of the `Fleet`, and one choice in each router mode. A linear search over all
workers is measured for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.record import Record, Role, State

READINGS_PER_SECOND = 10


def record(number: int) -> Record:
    return Record(
        role=Role.WORKER,
        id=number,
        namespace="dynamo",
        component="backend",
        endpoint="generate",
        models=("model",),
        engine="sglang",
        request_url=f"http://127.0.0.1:{number % 60000 + 1}",
        system_url=f"http://127.0.0.1:{number % 60000 + 1}",
        model_info={"model": {"id": "model", "object": "model", "max_model_len": 2048}},
        engine_info={"version": "0.5", "total_kv_blocks": 8192, "max_sequences": 64},
        state=State.READY,
    )


def median_us(work: Callable[[], object], *, repeat: int, rounds: int = 7) -> float:
    """Return the median time of one call, microseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeat):
            work()
        times.append((time.perf_counter() - start) / repeat)
    return statistics.median(times) * 1e6


def search(router: Router, workers: list[Record]) -> Record:
    """Return the ready worker of the model with the fewest requests, found by a linear search."""
    ready = [w for w in workers if w.state is State.READY and "model" in w.models]
    loads = [router.in_flight(worker.id) for worker in ready]
    return ready[loads.index(min(loads))]


def choose_and_carry(router: Router) -> None:
    worker = router.choose("model")
    assert worker is not None
    with router.carrying(worker):
        pass


def choices(count: int) -> None:
    workers = [record(number) for number in range(1, count + 1)]
    plain = Router(RouterMode.LEAST_LOADED, Fleet())
    plain.fleet.update(workers)
    before = median_us(lambda: search(plain, workers), repeat=50)
    print(f"  a linear search over all workers   {before:9.1f} us")
    for mode in RouterMode:
        router = Router(mode, Fleet())
        router.fleet.update(workers)
        cost = median_us(lambda router=router: choose_and_carry(router), repeat=2000)  # type: ignore[misc]
        print(
            f"  {mode.value + ', with its count':34} {cost:9.1f} us   1/{before / cost:.0f} of it"
        )
    fleet = Fleet()
    Router(RouterMode.LEAST_LOADED, fleet)
    states = [workers, [replace(workers[0], since=1.0), *workers[1:]]]

    def update() -> None:
        for state in states:
            fleet.update(state)

    print(f"  an update of the fleet             {median_us(update, repeat=5) / 2:9.1f} us")


async def readings(count: int, directory: Path) -> None:
    discovery = FileDiscovery(directory / str(count))
    locked = []
    for number in range(1, count + 1):
        path = discovery.directory / f"{number:016x}.json"
        path.write_bytes(record(number).to_json())
        locked.append(os.open(path, os.O_RDONLY))
        fcntl.flock(locked[-1], fcntl.LOCK_EX)
    try:
        cold = median_us(
            lambda: FileDiscovery(directory / str(count))._read_all(), repeat=1, rounds=5
        )
        assert len(await discovery.records()) == count
        warm = median_us(discovery._read_all, repeat=3)
        core = warm * READINGS_PER_SECOND / 1e6
        print(f"  a reading, all records parsed      {cold:9.1f} us")
        print(
            f"  a reading, no record changed       {warm:9.1f} us   1/{cold / warm:.1f}, "
            f"{core:.1%} of a core"
        )
    finally:
        for fd in locked:
            os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workers", type=int, nargs="*", default=[10, 100, 1000])
    counts = parser.parse_args().workers
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if max(counts) + 64 > most:
        sys.exit(f"{max(counts)} workers need more descriptors than the limit of {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as directory:
        for count in counts:
            print(f"{count} workers")
            asyncio.run(readings(count, Path(directory)))
            choices(count)


if __name__ == "__main__":
    main()
