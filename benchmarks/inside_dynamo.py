"""Measure the page of NVIDIA Dynamo's worker, with and without Dynamometer: `make bench-dynamo`.

NVIDIA Dynamo's own frontend and worker serve a tiny model, three times: unchanged, with
Dynamometer's collector in place of prometheus_client's, and also with Dynamometer's
`get_prometheus_expfmt` in place of NVIDIA Dynamo's. The script that replaces the functions is in
docs/inside-dynamo.md. All three get the same requests and the same scrapes. Processor time is
that of the process that serves the page, minus its processor time without scrapes.

The pages of all three must have the same families and series, and the values of NVIDIA Dynamo's
own functions for the same files. The benchmark prints each difference and exits with 1.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dynamo_pages import differences, differences_of_values
from dynamo_stack import (
    MODEL,
    SYSTEM_PORT,
    URL,
    Stack,
    end_other_processes,
    run_in_namespaces,
    stack,
)
from starting import say

from exporter import Scrape, cpu, plain, scraper

DOCUMENT = Path(__file__).parents[1] / "docs" / "inside-dynamo.md"
SCRAPES_A_SECOND, ROUNDS = 20, 3
LOAD_WITHIN = 120  # seconds
IDLE, SERVED, SERVING = "before the first request", "after the requests", "while it serves"


@dataclass(frozen=True)
class Cost:
    """The cost of a worker's page in one state of the worker.

    Attributes:
        lines: the number of lines on the page.
        cpu: processor time per scrape, seconds.
        times: the time to the answer of each scrape, seconds.
    """

    lines: int
    cpu: float
    times: list[float]


@dataclass(frozen=True)
class Found:
    """The measurements of one kind of worker.

    Attributes:
        pages: the page before the first request, and the page after the requests.
        costs: the costs of the page, by state of the worker.
        rates: requests per second, without scrapes and with scrapes.
        faults: the differences from the values of NVIDIA Dynamo's own functions.
    """

    pages: tuple[bytes, bytes]
    costs: dict[str, Cost]
    rates: tuple[float, float]
    faults: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scrapes", type=int, default=200)
    parser.add_argument("--requests", type=int, default=48, help="requests before the scrapes")
    parser.add_argument("--serving", type=int, default=20, help="requests per round")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is None:
        return run_in_namespaces(__file__, sys.argv[1:])
    say("creating a tiny model")
    model = options.inside / "tiny"
    command = [sys.executable, "-m", "dynamometer", "tiny-model", str(model)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Found] = {}
    for number, (name, worker) in enumerate(variants(options.inside).items()):
        say(f"Dynamo's worker {name}: starting (about 20 s)")
        with stack(options.inside / str(number), model, worker) as running:
            found[name] = measure(running, options)
        end_other_processes()
    print_costs(found)
    return print_faults(found)


def variants(place: Path) -> dict[str, list[str]]:
    """Return the command line of each kind of worker, by its name."""
    block = re.search(r"^    # worker.py\n(    .*\n|\n)+", DOCUMENT.read_text(), re.MULTILINE)
    assert block is not None, f"{DOCUMENT} has no worker.py"
    both = re.sub(r"^    ", "", block[0], flags=re.MULTILINE).strip()
    paragraphs = both.split("\n\n")
    collector = "\n\n".join(part for part in paragraphs if "get_prometheus_expfmt" not in part)
    commands = {"unchanged": [sys.executable, "-m", "dynamo.sglang"]}
    texts = {
        "with Dynamometer's collector": collector,
        "with Dynamometer's collector and text": both,
    }
    for number, (name, text) in enumerate(texts.items()):
        file = place / f"worker_{number}.py"
        file.write_text(text + "\n", encoding="utf-8")
        commands[name] = [sys.executable, str(file)]
    return commands


def measure(running: Stack, options: argparse.Namespace) -> Found:
    say(f"{options.scrapes} scrapes, {options.requests} requests, {options.scrapes} scrapes")
    costs = {IDLE: scrape_idle(running, options.scrapes)}
    idle = plain(SYSTEM_PORT)  # some gauges appear only seconds after the worker is ready
    rate(requests(options.requests))
    time.sleep(2)  # SGLang updates some gauges once a second
    pages = idle, plain(SYSTEM_PORT)
    faults = differences_of_values(running.files, lambda: plain(SYSTEM_PORT))
    costs[SERVED] = scrape_idle(running, options.scrapes)
    say(f"{ROUNDS} rounds of {options.serving} requests, unscraped and scraped")
    costs[SERVING], rates = scrape_serving(running, options.serving)
    return Found(pages, costs, rates, faults)


def scrape_idle(running: Stack, scrapes: int) -> Cost:
    """Measure the page of an idle worker."""
    scrape = scraper(SYSTEM_PORT)
    for _ in range(20):
        scrape()
    before = cpu(running.worker)
    time.sleep(2)
    idle = (cpu(running.worker) - before) / 2
    before, start, times = cpu(running.worker), time.perf_counter(), []
    for _ in range(scrapes):
        times.append(timed(scrape))
        time.sleep(0.005)
    taken = cpu(running.worker) - before - idle * (time.perf_counter() - start)
    return Cost(plain(SYSTEM_PORT).count(b"\n"), taken / scrapes, times)


def scrape_serving(running: Stack, count: int) -> tuple[Cost, tuple[float, float]]:
    """Measure the page of a serving worker, and the median rates without and with scrapes."""
    scrape, times = scraper(SYSTEM_PORT), []
    unscraped, scraped, taken = [], [], 0.0
    for _ in range(ROUNDS):
        before = cpu(running.worker)
        unscraped.append(rate(requests(count)))
        between = cpu(running.worker)
        load, due = requests(count), time.monotonic()
        while load.poll() is None:
            times.append(timed(scrape))
            due += 1 / SCRAPES_A_SECOND
            time.sleep(max(0, due - time.monotonic()))
        scraped.append(rate(load))
        say(f"    {unscraped[-1]:.1f} and {scraped[-1]:.1f} requests a second")
        taken += cpu(running.worker) - between - (between - before)
    lines = plain(SYSTEM_PORT).count(b"\n")
    cost = Cost(lines, taken / len(times), times)
    return cost, (statistics.median(unscraped), statistics.median(scraped))


def timed(scrape: Scrape) -> float:
    start = time.perf_counter()
    scrape()
    return time.perf_counter() - start


def requests(count: int) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("dynamo_load.py")
    command = [sys.executable, str(script), URL, MODEL, "--requests", str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rate(load: subprocess.Popen[str]) -> float:
    """Return the requests per second of a load after its end."""
    output = load.communicate(timeout=LOAD_WITHIN)[0]
    if load.returncode != 0:
        sys.exit("the load failed")
    return float(output)


def print_costs(found: dict[str, Found]) -> None:
    print("\n| page | worker | lines | CPU per scrape | p50 | p99 | ratio of CPU, p50 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for state in (IDLE, SERVED, SERVING):
        base = found["unchanged"].costs[state]
        for name, variant in found.items():
            cost = variant.costs[state]
            p50, p99 = middle(cost), sorted(cost.times)[int(0.99 * len(cost.times))]
            ratios = f"{base.cpu / cost.cpu:.1f}×, {middle(base) / p50:.1f}×"
            print(
                f"| {state} | {name} | {cost.lines} | {cost.cpu * 1e3:.2f} ms | {p50 * 1e3:.2f} ms"
                f" | {p99 * 1e3:.2f} ms | {ratios} |"
            )
    print(f"\nrequests/s with {SCRAPES_A_SECOND} scrapes per second, relative to no scrapes:")
    for name, variant in found.items():
        unscraped, scraped = variant.rates
        print(f"    {name}: {scraped / unscraped:.2f} ({unscraped:.1f} to {scraped:.1f})")


def middle(cost: Cost) -> float:
    return statistics.median(cost.times)


def print_faults(found: dict[str, Found]) -> int:
    faults = [f"{name}: {fault}" for name, variant in found.items() for fault in variant.faults]
    base = found["unchanged"].pages
    for name, variant in found.items():
        for one, two in zip(base, variant.pages, strict=True):
            faults += [f"{name}: {fault}" for fault in differences(one, two)]
    for fault in faults:
        print(fault)
    if not faults:
        print("\nfamilies, series and values are those of NVIDIA Dynamo's own functions")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
