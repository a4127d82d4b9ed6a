"""Measure what serving costs, on several paths in one run: `make bench-serving`.

The same simulated engines are reached directly, through a bare relay of bytes of one and two hops,
through Dynamometer's frontend and workers, and on request through SGLang's Rust router and NVIDIA
Dynamo, each in an environment of its own. All paths get the same load in each round, one after
another, and the tables have the medians of the rounds. Each answer is checked: its number of
tokens, their order, all of its bytes. An answer that fails the check makes the exit code 1.

`--real` adds the real engine, measured with SGLang's own `bench_serving`; `--growth` adds large
prompts, long answers and idle connections; `--long` is a check of one load over a long time.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import serving_report
from dynamo_stack import run_in_namespaces
from serving_growth import growth
from serving_load import Shape
from serving_machine import cores, describe, refuse_left_over_engines
from serving_paths import ServingPath, dynamo, fleet, frontend, has_processes, relays, router
from serving_real import real
from serving_report import Results
from serving_rounds import FIRST_TOKEN_SECONDS, FIXED_AT, SCRAPES_A_SECOND, Bench
from serving_start import measure_start
from starting import say


def main() -> int:
    options = _options()
    if options.report:
        results = Results.load(options.report)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        if not options.inside:
            refuse_left_over_engines()
        if options.dynamo_python and not options.inside:
            # NVIDIA Dynamo opens sockets on all interfaces.
            return run_in_namespaces(__file__, sys.argv[1:])
        with tempfile.TemporaryDirectory(prefix="bench-serving-") as place:
            results = measure(options, Path(place))
    if options.results:
        results.save(options.results)
    if options.write:
        serving_report.write(results)
        say(f"wrote {serving_report.PAGE} and {serving_report.PICTURE}")
    print(serving_report.text(results))
    return 1 if results.faults else 0


def _options() -> argparse.Namespace:
    many = cores() >= 8
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one short round at 64 streams, under a minute")
    add("--rounds", type=int, default=5, help="default: 5")
    add("--seconds", type=float, default=4.0, help="of each measurement (default: 4)")
    add(
        "--levels",
        type=_numbers,
        default=[64, 256, 1024] if many else [64, 256],
        metavar="N,...",
        help="concurrent streams (default: 64,256, and 1024 with 8 cores)",
    )
    add(
        "--concurrency",
        type=_numbers,
        default=[1, 16, 64],
        metavar="N,...",
        help="for answers of one token (default: 1,16,64)",
    )
    add("--engines", type=int, default=4 if many else 2, help="default: 2, or 4 with 8 cores")
    add(
        "--clients",
        type=int,
        default=4 if many else 1,
        help="client processes (default: 1, or 4 with 8 cores)",
    )
    add("--rate", type=float, default=50.0, help="tokens/s of a stream (default: 50)")
    add("--tokens", type=int, default=64, help="of an answer (default: 64)")
    add(
        "--processes",
        type=_numbers,
        default=[1, 4] if many else [1],
        metavar="N,...",
        help="frontend processes, as in dyno frontend --processes (default: 1, and 4 with 8 cores)",
    )
    add("--paths", metavar="TEXT", help="only paths whose name contains one of these, by commas")
    add("--keep-alive", action="store_true", help="several requests over one connection")
    add(
        "--scraped",
        action="store_true",
        help=f"also with every page scraped {SCRAPES_A_SECOND} times a second",
    )
    add("--router-python", metavar="PATH", help="an interpreter that has sglang-router")
    add(
        "--dynamo-python",
        metavar="PATH",
        help="an interpreter that has ai-dynamo; all processes run in namespaces of their own",
    )
    add(
        "--growth",
        action="store_true",
        help="also prompts up to 4 MiB, answers of 32,000 tokens, and 10,000 idle connections",
    )
    add(
        "--long",
        type=float,
        metavar="SECONDS",
        help="one load at the highest level for this long, through the frontend only",
    )
    add("--real", action="store_true", help="also the real engine, with SGLang's bench_serving")
    add("--only-real", action="store_true", help="nothing but --real")
    add("--results", type=Path, metavar="FILE", help="write all figures to this JSON file")
    add("--report", type=Path, metavar="FILE", help="measure nothing: print the figures of a file")
    add("--write", action="store_true", help="write the tables into docs/performance.md")
    add("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.levels = 1, 2.0, options.levels[:1]
        options.concurrency = [FIXED_AT]
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def measure(options: argparse.Namespace, place: Path) -> Results:
    """Start all processes, and measure everything that the options request."""
    shape = Shape(
        tokens=options.tokens, rate=options.rate, first_token_seconds=FIRST_TOKEN_SECONDS,
        keep_alive=options.keep_alive,
    )  # fmt: skip
    setting = "" if options.only_real else _setting(options)
    results = Results(machine=describe(), setting=setting)
    say(results.machine)
    if not options.only_real:
        if not (options.quick or options.long):
            measure_start(place, results)
        with _paths(options, place / "streams") as paths:
            bench = Bench(options, shape, paths, results)
            if options.long:
                bench.run_long(options.long)
            else:
                say(f"all rounds: about {bench.plan():.0f} s")
                bench.measure_idle()
                bench.measure_streams()
                bench.measure_requests()
        if options.growth:
            growth(place / "growth", results)
    if options.real or options.only_real:
        real(place / "real", results, rounds=options.rounds)
    return results


def _setting(options: argparse.Namespace) -> str:
    rounds = f"medians of {options.rounds} rounds of {options.seconds:.0f} s"
    if options.long:
        rounds = f"one load of {options.long:.0f} s"
    connections = "kept" if options.keep_alive else "one for each request"
    return (
        f"{options.engines} simulated engines, {options.rate:.0f} tokens/s a stream, one event a "
        f"token, answers of {options.tokens} tokens, the first one after "
        f"{FIRST_TOKEN_SECONDS * 1e3:.0f} ms; client processes: {options.clients}; connections: "
        f"{connections}; {rounds}. CPU is of whole processes."
    )


@contextlib.contextmanager
def _paths(options: argparse.Namespace, place: Path) -> Iterator[list[ServingPath]]:
    counts = options.processes
    if max(counts) > 1 and not has_processes():
        say("dyno frontend has no flag --processes: one process is measured")
        counts = [1]
    say(f"starting {options.engines} engines with workers, relays and frontends")
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(
            fleet(place, count=options.engines, rate=options.rate,
                  first_token_seconds=FIRST_TOKEN_SECONDS)
        )  # fmt: skip
        paths = [found.direct()]
        paths += stack.enter_context(relays(found, processes=max(counts)))
        paths += [stack.enter_context(frontend(found, processes=count)) for count in counts]
        if options.router_python:
            paths.append(stack.enter_context(router(found, python=options.router_python)))
        if options.dynamo_python:
            paths.append(
                stack.enter_context(
                    dynamo(place, python=options.dynamo_python, count=options.engines,
                           rate=options.rate, first_token_seconds=FIRST_TOKEN_SECONDS)
                )
            )  # fmt: skip
        if options.paths:
            parts = options.paths.split(",")
            paths = [
                path for path in paths
                if not path.hops or any(part in path.name for part in parts)
            ]  # fmt: skip
        yield paths


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
