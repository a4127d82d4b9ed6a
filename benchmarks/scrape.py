"""Compare whole scrapes over HTTP: `make bench-metrics`, second part.

Two servers serve the same directory of 16,000 lines, 10 % of which change before each scrape:
Dynamometer's page as in a worker, and an aiohttp handler that calls prometheus_client and gzip.
Requests have Prometheus' own headers. The table has the processor time of the servers, and the
longest time for which an event loop was blocked during a scrape.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
from aiohttp import web
from multiprocess_load import Load
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics import scraping
from dynamometer.metrics.engine_callback import register_engine_metrics_callback
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.process import event_loop
from dynamometer.runtime.distributed import DistributedRuntime

HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/"
    "openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "Accept-Encoding": "gzip",
}
PROCESSES, LABEL_SETS = 8, 6
SHARE = 0.1
_FILES_IN = Path("/dev/shm")


class LoopWatch:
    """The longest time for which the event loop was blocked, in seconds; measured on request."""

    def __init__(self) -> None:
        self._watching: asyncio.Task[None] | None = None
        self._longest = 0.0

    async def begin(self, _: web.Request) -> web.Response:
        self._longest = 0.0
        self._watching = asyncio.create_task(self._watch())
        return web.Response()

    async def end(self, _: web.Request) -> web.Response:
        assert self._watching is not None
        self._watching.cancel()
        return web.json_response(self._longest)

    async def _watch(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.0005)
            self._longest = max(self._longest, time.perf_counter() - start - 0.0005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer scrapes")
    parser.add_argument("--serve", choices=list(APPLICATIONS), help=argparse.SUPPRESS)
    parser.add_argument("directory", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        event_loop.run(serve(APPLICATIONS[options.serve](options.directory)))
        return
    rounds = 3 if options.quick else 12
    path = Path(tempfile.mkdtemp(dir=_FILES_IN))
    try:
        load = Load(path, processes=PROCESSES, label_sets=LABEL_SETS)
        with server(OURS, path) as one, server(REFERENCE, path) as other:
            measured = [Measured(OURS, *one, scrapes=10), Measured(REFERENCE, *other, scrapes=1)]
            for _ in range(rounds):  # alternating, because the speed of a machine varies
                for each in measured:
                    each.measure_round(load)
        load.close()
    finally:
        shutil.rmtree(path)
    print(
        f"A whole scrape over HTTP of {load.lines:,} lines, {SHARE:.0%} changed, OpenMetrics, gzip"
    )
    print()
    print("| server | CPU per scrape | loop blocked, first read | loop blocked, later | bytes |")
    print("| --- | --- | --- | --- | --- |")
    for each in measured:
        seconds = (each.cpu, each.first, each.later)
        cells = [f"{second * 1e3:.2f} ms" for second in seconds]
        print(f"| {each.name} | {' | '.join(cells)} | {each.size:,} |")
    print()
    ours_cpu, reference_cpu = (each.cpu for each in measured)
    print(f"{reference_cpu / ours_cpu:.0f} times less CPU than prometheus_client's")


class Measured:
    """The measurements of one server.

    Attributes:
        cpu: processor time per scrape, seconds.
        first: the longest time for which the first scrape blocked the event loop, seconds.
        later: the longest time for which a later scrape blocked the event loop, seconds.
        size: the size of the answer, bytes.
    """

    def __init__(self, name: str, process: psutil.Process, port: int, *, scrapes: int) -> None:
        self.name = name
        self.later = 0.0
        self._process = process
        self._port = port
        self._scrapes = scrapes
        self._used = 0.0
        self._count = 0
        get(port, "/watch")
        self.size = len(get(port, "/metrics"))
        self.first = json.loads(get(port, "/watched"))

    @property
    def cpu(self) -> float:
        return self._used / self._count

    def measure_round(self, load: Load) -> None:
        """Measure the processor time of some scrapes, and the event loop during some others."""
        self._scrape(1, load)
        before = sum(self._process.cpu_times()[:2])
        self._scrape(self._scrapes, load)
        self._used += sum(self._process.cpu_times()[:2]) - before
        self._count += self._scrapes
        get(self._port, "/watch")
        self._scrape(self._scrapes, load)
        self.later = max(self.later, json.loads(get(self._port, "/watched")))

    def _scrape(self, times: int, load: Load) -> None:
        for _ in range(times):
            load.change(SHARE)
            get(self._port, "/metrics")


@contextmanager
def server(name: str, path: Path, script: str = __file__) -> Iterator[tuple[psutil.Process, int]]:
    """Run a benchmark's script as a server of `path`, and return its process and its port."""
    command = [sys.executable, script, "--serve", name, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield psutil.Process(process.pid), int(process.stdout.readline())
        finally:
            process.terminate()


@cache
def connection(port: int) -> http.client.HTTPConnection:
    """Return a persistent connection, as Prometheus uses."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def get(port: int, path: str) -> bytes:
    connection(port).request("GET", path, headers=HEADERS)
    return connection(port).getresponse().read()


async def serve(app: web.Application) -> None:
    watch = LoopWatch()
    app.router.add_get("/watch", watch.begin)
    app.router.add_get("/watched", watch.end)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener):
        print(listener.getsockname()[1], flush=True)
        await asyncio.Event().wait()


def dynamometer_application(path: Path) -> web.Application:
    runtime = DistributedRuntime()
    endpoint = runtime.namespace("dynamo").component("backend").endpoint("generate")
    register_engine_metrics_callback(endpoint, MultiprocessDirectory(path), "sglang:")
    app = web.Application()
    scraping.add_route(app, runtime.page)
    return app


def reference_application(path: Path) -> web.Application:
    metrics = CollectorRegistry()
    MultiProcessCollector(metrics, str(path))

    async def handle(_: web.Request) -> web.Response:
        return web.Response(
            body=gzip.compress(generate_latest(metrics), 6), headers={"Content-Encoding": "gzip"}
        )

    handler: Callable[[web.Request], Awaitable[web.Response]] = handle
    app = web.Application()
    app.router.add_get("/metrics", handler)
    return app


OURS, REFERENCE = "dynamometer", "prometheus_client"
APPLICATIONS = {OURS: dynamometer_application, REFERENCE: reference_application}


if __name__ == "__main__":
    main()
