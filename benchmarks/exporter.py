"""Measure the cost of an exporter beside a real SGLang: `make bench-exporter`.

The engine is started by its own command line, the exporter by `dyno exporter --pid`, which
restricts the exporter to this engine. Each page is scraped with Prometheus' own headers over one
connection. The first table has the time to the answer, and the processor time of the answering
process (for the engine's page: its server process). The second table has the engine's throughput
of streams without scrapes, with its own page scraped 20 times a second, and with the exporter's
page scraped 20 times a second. The three cases alternate, because the speed of a machine varies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import psutil
from starting import say, started

from dynamometer.engines.sglang import CPU_FLAGS
from dynamometer.http.addresses import free_port

HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/"
    "openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "Accept-Encoding": "gzip",
}
SCRAPES_A_SECOND = 20
STREAMS, TOKENS = 8, 64
Scrape = Callable[[], bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scrapes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=60, help="requests per round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        say("creating a tiny model, starting SGLang (about half a minute)")
        with engine(place) as (server, engine_port), exporter(place, server.pid) as found:
            ours, our_port = found
            url = f"http://127.0.0.1:{engine_port}"
            asyncio.run(serve(url, options.requests))
            print_scrapes(
                [
                    ("SGLang's own page", server, engine_port),
                    ("the exporter's", ours, our_port),
                ],
                options.scrapes,
            )
            say("idle for 10 s")
            before = cpu(ours)
            time.sleep(10)
            print(f"\nbetween scrapes: {(cpu(ours) - before) * 100:.2f} ms of CPU per second")
            print(f"resident: {ours.memory_info().rss / 2**20:.1f} MiB")
            print_serving(url, engine_port, our_port, options.rounds, options.requests)


def print_scrapes(servers: list[tuple[str, psutil.Process, int]], scrapes: int) -> None:
    print("\n| page | lines | CPU per scrape | p50 | p99 |")
    print("| --- | --- | --- | --- | --- |")
    costs = []
    for name, process, port in servers:
        scrape = scraper(port)
        lines = plain(port).count(b"\n")
        for _ in range(20):
            scrape()
        before, times = cpu(process), []
        for _ in range(scrapes):
            start = time.perf_counter()
            scrape()
            times.append(time.perf_counter() - start)
            time.sleep(0.005)
        costs.append((cpu(process) - before) / scrapes * 1e3)
        p50, p99 = statistics.median(times) * 1e3, sorted(times)[int(0.99 * scrapes)] * 1e3
        print(f"| {name} | {lines} | {costs[-1]:.2f} ms | {p50:.2f} ms | {p99:.2f} ms |")
    print(f"\nthe exporter: {costs[0] / costs[1]:.1f} times less CPU per scrape")


def print_serving(url: str, engine_port: int, our_port: int, rounds: int, requests: int) -> None:
    say(f"{rounds} rounds of {requests} streams, scraped {SCRAPES_A_SECOND} times a second")
    kinds: dict[str, int | None] = {
        "no scrapes": None,
        "SGLang's own page is scraped": engine_port,
        "the exporter is scraped": our_port,
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, port in kinds.items():
            with scraped(port):
                found[name].append(asyncio.run(serve(url, requests)))
    base = statistics.median(found["no scrapes"])
    print(f"\n| while | requests/s (median of {rounds}) | relative to no scrapes |")
    print("| --- | --- | --- |")
    for name, rates in found.items():
        rate = statistics.median(rates)
        print(f"| {name} | {rate:.1f} | {rate / base:.2f} |")


async def serve(url: str, requests: int) -> float:
    """Return the requests per second of `STREAMS` clients that read streams of `TOKENS` tokens."""
    body = {
        "model": "tiny", "prompt": "Once upon a time", "max_tokens": TOKENS, "stream": True,
        "ignore_eos": True,
    }  # fmt: skip
    left = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                async for _ in answer.content.iter_any():
                    pass

    async with aiohttp.ClientSession() as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(STREAMS)))
        return requests / (time.perf_counter() - start)


@contextlib.contextmanager
def scraped(port: int | None) -> Iterator[None]:
    """Scrape a page from a separate process while the context is open."""
    if port is None:
        yield
        return
    command = [sys.executable, "-c", _SCRAPER, str(port), str(1 / SCRAPES_A_SECOND)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


_SCRAPER = f"""
import http.client, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
due = time.monotonic()
while True:
    connection.request("GET", "/metrics", headers={HEADERS!r})
    connection.getresponse().read()
    due += float(sys.argv[2])
    time.sleep(max(0, due - time.monotonic()))
"""


def scraper(port: int) -> Scrape:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def scrape() -> bytes:
        connection.request("GET", "/metrics", headers=HEADERS)
        return connection.getresponse().read()

    return scrape


def plain(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    return connection.getresponse().read()


def cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


@contextlib.contextmanager
def engine(place: Path) -> Iterator[tuple[psutil.Process, int]]:
    model, port = place / "tiny", free_port()
    subprocess.run(
        [sys.executable, "-m", "dynamometer", "tiny-model", str(model)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    flags = [word for pair in CPU_FLAGS.items() for word in pair if word is not None]
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), *flags]
    command += ["--served-model-name", "tiny", "--port", str(port), "--enable-metrics"]
    variables = {"DYNAMOMETER_SGLANG_CPU": "1", "HF_HUB_OFFLINE": "1"}
    with started(command, place / "engine.log", variables) as process:
        deadline = time.monotonic() + 150
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"SGLang did not start:\n{(place / 'engine.log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield psutil.Process(process.pid), port


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


@contextlib.contextmanager
def exporter(place: Path, pid: int) -> Iterator[tuple[psutil.Process, int]]:
    command = [sys.executable, "-m", "dynamometer", "exporter", "--system-port", "0"]
    command += ["--pid", str(pid)]
    log = place / "exporter.log"
    with started(command, log, {"DYN_FILE_KV": str(place / "discovery")}) as process:
        for _ in range(200):
            if ": ready" in log.read_text():
                break
            time.sleep(0.1)
        port = re.search(r":(\d+)/metrics, /health", log.read_text())
        if port is None:
            sys.exit(f"the exporter did not start:\n{log.read_text()}")
        yield psutil.Process(process.pid), int(port[1])


if __name__ == "__main__":
    main()
