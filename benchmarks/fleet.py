"""Compare one scrape of the fleet's page with scrapes of all workers: `make bench-fleet`.

A server has the pages of 8 workers with 2,000 lines each, as in a worker, of which 10 % change
before each scrape. A frontend's ops listener, in a process of its own, has `/engine_metrics` over
these pages. Requests have Prometheus' own headers. The table has the time until all lines have
arrived, and the processor time of all servers that have a part in it.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
from aiohttp import web
from multiprocess_load import Load
from scrape import get, server

from dynamometer.frontend.ops import OpsListener
from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics.engine_callback import register_engine_metrics_callback
from dynamometer.metrics.scraping import Scrapes
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.names import labels
from dynamometer.process import event_loop
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import Record, Role

WORKERS, LABEL_SETS, SHARE = 8, 6, 0.1
OWN = Record(role=Role.FRONTEND, id=WORKERS + 1, namespace="", component="frontend")
_FILES_IN = Path("/dev/shm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer scrapes")
    parser.add_argument("--serve", choices=["workers", "frontend"], help=argparse.SUPPRESS)
    parser.add_argument("place", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve = serve_workers if options.serve == "workers" else serve_frontend
        event_loop.run(serve(options.place))
        return
    rounds = 5 if options.quick else 40
    place = Path(tempfile.mkdtemp(dir=_FILES_IN))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place)
        loads = []
        for id_ in range(1, WORKERS + 1):
            (place / str(id_)).mkdir()
            loads.append(Load(place / str(id_), processes=1, label_sets=LABEL_SETS))
            stack.callback(loads[-1].close)
        workers, worker_port = stack.enter_context(server("workers", place, __file__))
        (place / "port").write_text(str(worker_port))
        frontend, frontend_port = stack.enter_context(server("frontend", place, __file__))
        paths = [f"/{id_}/metrics" for id_ in range(1, WORKERS + 1)]
        measured = [
            Measured("each worker's page", [workers], partial(get_all, worker_port, paths)),
            Measured(
                "the fleet's page",
                [workers, frontend],
                partial(get_all, frontend_port, ["/engine_metrics"]),
            ),
        ]
        first = measured[1].first
        for _ in range(rounds):  # alternating, because the speed of a machine varies
            for each in measured:
                for load in loads:
                    load.change(SHARE)
                each.measure()
    lines = sum(load.lines for load in loads)
    print(f"A scrape of {WORKERS} workers with {lines:,} lines, {SHARE:.0%} changed")
    print()
    print("| scrape of | time, median | CPU of all servers | bytes |")
    print("| --- | --- | --- | --- |")
    for each in measured:
        cells = f"{each.time * 1e3:.0f} ms | {each.cpu * 1e3:.0f} ms | {each.size:,}"
        print(f"| {each.name} | {cells} |")
    direct, fleet = measured
    print()
    print(
        f"The fleet's page takes {fleet.time / direct.time:.1f} times the time and "
        f"{fleet.cpu / direct.cpu:.1f} times the CPU; its first scrape takes {first * 1e3:.0f} ms"
    )


class Measured:
    """The measurements of one kind of scrape.

    Attributes:
        first: the time of the first scrape in seconds.
        size: the size of the responses in bytes.
    """

    def __init__(
        self, name: str, processes: list[psutil.Process], scrape: Callable[[], int]
    ) -> None:
        self.name = name
        self._processes = processes
        self._scrape = scrape
        self._times: list[float] = []
        self._used: list[float] = []
        self.measure()
        self.first = self._times.pop()
        self._used.clear()

    @property
    def time(self) -> float:
        """The median time of a scrape in seconds."""
        return statistics.median(self._times)

    @property
    def cpu(self) -> float:
        """The mean processor time of a scrape in seconds."""
        return statistics.mean(self._used)

    def measure(self) -> None:
        before, started = self._cpu_seconds(), time.perf_counter()
        self.size = self._scrape()
        self._times.append(time.perf_counter() - started)
        self._used.append(self._cpu_seconds() - before)

    def _cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


def get_all(port: int, paths: list[str]) -> int:
    """Request pages one after another, and return the bytes of all bodies."""
    return sum(len(get(port, path)) for path in paths)


async def serve_workers(place: Path) -> None:
    app = web.Application()
    for id_ in range(1, WORKERS + 1):
        runtime = DistributedRuntime(instance_id=id_)
        endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate")
        own = {labels.MODEL: "m", labels.WORKER_ID: hexadecimal(id_)}
        files = MultiprocessDirectory(place / str(id_), labels=own)
        register_engine_metrics_callback(endpoint, files, "sglang:")
        app.router.add_get(f"/{id_}/metrics", Scrapes(runtime.page).handle)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener):
        print(listener.getsockname()[1], flush=True)
        await asyncio.Event().wait()


async def serve_frontend(place: Path) -> None:
    url = f"http://127.0.0.1:{(place / 'port').read_text()}"
    discovery = FileDiscovery(place / "discovery")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(discovery.register(OWN))
        for id_ in range(1, WORKERS + 1):
            worker = replace(OWN, role=Role.WORKER, id=id_, system_url=f"{url}/{id_}")
            await stack.enter_async_context(discovery.register(worker))
        ops = OpsListener("127.0.0.1", 0)
        await stack.enter_async_context(ops.serving(discovery, OWN))
        print(str(ops.url).rpartition(":")[2], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
