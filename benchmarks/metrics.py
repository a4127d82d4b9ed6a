"""Compare the cost of a page with prometheus_client's, in one run: `make bench-metrics`.

Both libraries render the same files of several processes, with counters, gauges and histograms (see
`multiprocess_load`). Times are processor time, the minimum of several, because other load on the
machine only adds to a time. Pages are compared as sorted lines. `--svg` draws the picture.
"""

from __future__ import annotations

import argparse
import gc
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cost_picture import draw
from multiprocess_load import Load
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from dynamometer.exposition.filters import Selection
from dynamometer.exposition.rendering import render
from dynamometer.multiprocess import MultiProcessCollector as OurCollector
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.multiprocess import generate_latest as our_generate_latest

# Processes and label sets, each of which has 330 lines.
SIZES = ((1, 1), (4, 1), (4, 4), (8, 6), (16, 6), (33, 6))
QUICK_SIZES = ((1, 1), (8, 6))
SHARES = {"none": 0.0, "10 %": 0.1, "all": 1.0}
FIVE_FAMILIES = [f"sglang:some_counted_thing_{k}_total" for k in range(5)]
_FILES_IN = Path("/dev/shm")


@dataclass(frozen=True)
class Costs:
    """Processor times of one page, seconds.

    Attributes:
        lines: the number of lines on the page.
        reference: the time of prometheus_client.
        first: the time of a new directory's first page.
        steady: the time of later pages, by the share of series that changed.
        selection: the time to render five families after a reading.
    """

    lines: int
    reference: float
    first: float
    steady: dict[str, float]
    selection: float

    def per_changed(self, share: str) -> float:
        """Return the additional cost of a changed line, in seconds."""
        changed = self.lines * SHARES[share]
        return (self.steady[share] - self.steady["none"]) / changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sizes, few repetitions")
    parser.add_argument("--svg", type=Path, help="write the picture to this file")
    parser.add_argument(
        "--memory-renders",
        type=int,
        default=100_000,
        help="renders of the memory test; 0: skip the test",
    )
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_own_memory(options.memory_of)
        return
    sizes = QUICK_SIZES if options.quick else SIZES
    found = [measure(*size, quick=options.quick) for size in sizes]
    print_table(found)
    print_drop_in(*QUICK_SIZES[-1])
    if not options.quick and options.memory_renders:
        print_memory(*sizes[-1], renders=options.memory_renders)
    if options.svg:
        options.svg.write_text(
            draw(
                {
                    "prometheus_client": [(c.lines, c.reference) for c in found],
                    "first reading": [(c.lines, c.first) for c in found],
                    **{
                        f"{share} changed": [(c.lines, c.steady[share]) for c in found]
                        for share in reversed(SHARES)
                    },
                }
            ),
            encoding="utf-8",
        )


def measure(processes: int, label_sets: int, *, quick: bool) -> Costs:
    """Measure the page of some processes, each with some label sets."""
    with _TemporaryLoad(processes, label_sets) as (path, load):
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(path))

        def reference() -> bytes:
            return generate_latest(registry)

        directory = MultiprocessDirectory(path)
        _same(reference(), directory.render())
        references, firsts = [], []
        for _ in range(2 if quick else 3):
            gc.collect()
            references.append(timed(reference))
            firsts.append(timed(MultiprocessDirectory(path).render))
        for _ in range(5):  # until the numbers have as many digits as after a long run
            load.change(1.0)
            directory.render()
        steady: dict[str, list[float]] = {share: [] for share in SHARES}
        selections = []
        for share in SHARES:
            for _ in range(11 if quick else 31):
                load.change(SHARES[share])
                steady[share].append(timed(directory.render))
                selections.append(_selection(directory))
        _same(reference(), directory.render())
        references.append(timed(reference))
        return Costs(
            load.lines,
            min(references),
            min(firsts),
            {share: min(times) for share, times in steady.items()},
            min(selections),
        )


def _selection(directory: MultiprocessDirectory) -> float:
    """Return the time to render five families after a reading."""
    families = directory.current_families()
    selection = Selection.of(names=FIVE_FAMILIES)
    return timed(lambda: render(selection.apply(families)))


def timed(work: Callable[[], object]) -> float:
    """Return the processor time of `work`, in seconds."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


class _TemporaryLoad:
    def __init__(self, processes: int, label_sets: int) -> None:
        place = _FILES_IN if _FILES_IN.is_dir() else None
        self._path = Path(tempfile.mkdtemp(dir=place))
        self._load = Load(self._path, processes=processes, label_sets=label_sets)

    def __enter__(self) -> tuple[Path, Load]:
        return self._path, self._load

    def __exit__(self, *_: object) -> None:
        self._load.close()
        shutil.rmtree(self._path)


def _same(theirs: bytes, ours: bytes) -> None:
    assert sorted(theirs.splitlines()) == sorted(ours.splitlines()), "the pages differ"


def print_table(found: list[Costs]) -> None:
    """Print times in milliseconds, and prometheus_client's time divided by each."""
    print("Processor time of one page, milliseconds (times faster than prometheus_client)\n")
    head = ["lines", "prometheus_client", "first reading", *(f"{s} changed" for s in SHARES)]
    print("| " + " | ".join([*head, "five families", "µs per changed line (10 %, all)"]) + " |")
    print("| " + " | ".join(["---"] * (len(head) + 2)) + " |")
    for costs in found:
        cells = [f"{costs.lines:,}", _ms(costs.reference)]
        cells.append(f"{_ms(costs.first)} ({costs.first / costs.reference:.2f} of it)")
        cells += [f"{_ms(t)} ({costs.reference / t:,.0f}x)" for t in costs.steady.values()]
        cells.append(_ms(costs.selection))
        cells.append(", ".join(f"{costs.per_changed(s) * 1e6:.2f}" for s in ("10 %", "all")))
        print("| " + " | ".join(cells) + " |")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def print_memory(processes: int, label_sets: int, *, renders: int) -> None:
    """Print the memory per series, and the memory growth after many renders."""
    with _TemporaryLoad(processes, label_sets) as (path, load):
        found = subprocess.run(
            [sys.executable, __file__, "--memory-of", str(path)], stdout=subprocess.PIPE, check=True
        )
        used = int(found.stdout)
        print(f"\nmemory: {used / load.lines:.0f} bytes per series at {load.lines:,} series")
    with _TemporaryLoad(1, 1) as (path, load):
        directory = MultiprocessDirectory(path)
        for _ in range(100):
            load.change(1.0)
            directory.render()
        gc.collect()
        resident = _resident()
        for number in range(renders):
            if number % 10 == 0:
                load.change(0.1)
            directory.render()
        gc.collect()
        print(f"after {renders:,} renders: {_resident() - resident:+,} bytes resident")


def print_own_memory(path: Path) -> None:
    """Print the memory that a directory and its page use, in bytes; runs in a separate process."""
    with tempfile.TemporaryDirectory() as empty:
        MultiprocessDirectory(empty).render()
    gc.collect()
    before = _resident()
    directory = MultiprocessDirectory(path)
    directory.render()
    gc.collect()
    print(_resident() - before)


def print_drop_in(processes: int, label_sets: int) -> None:
    """Print the cost for a service that changes only its imports."""
    with _TemporaryLoad(processes, label_sets) as (path, load):
        theirs, ours = CollectorRegistry(), CollectorRegistry()
        MultiProcessCollector(theirs, str(path))
        OurCollector(ours, str(path))
        ours_twice = our_generate_latest(ours)
        _same(generate_latest(theirs), ours_twice)
        reference = min(timed(lambda: generate_latest(theirs)) for _ in range(3))
        print(f"\ndrop-in, {load.lines:,} lines, 10 % changed (times faster)")
        print(f"  prometheus_client: {_ms(reference)} ms")
        for name, render_page in {
            "MultiProcessCollector replaced": generate_latest,
            "generate_latest replaced too": our_generate_latest,
        }.items():
            times = []
            for _ in range(7):
                load.change(0.1)
                times.append(timed(partial(render_page, ours)))
            print(f"  {name}: {_ms(min(times))} ms ({reference / min(times):,.1f}x)")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
