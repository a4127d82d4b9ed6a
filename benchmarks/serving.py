"""Measure what serving costs, on several paths in one run: `make bench-serving`.

A hop is one program that relays. The same simulated engines are measured alone, through a bare
relay of bytes of one and two hops, through Dynamometer's frontend and workers, and on request
through SGLang's Rust router and NVIDIA Dynamo, each in an environment of its own. All paths get the
same load in each round, one after another, and the tables have the medians of the rounds. Each
answer is checked: its number of tokens, their order, all of its bytes. An answer that fails the
check makes the exit code 1.

`--real` adds the real engine, measured with SGLang's own `bench_serving`; `--growth` adds large
prompts, long answers and idle connections; `--long` is a check of one load over a long time.
"""

from __future__ import annotations

import argparse
import contextlib
import math
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
from serving_paths import (
    ServingPath,
    dynamo,
    fleet,
    frontend,
    has_processes,
    path_names,
    relays,
    router,
)
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
    quick = {"rounds": 1, "seconds": 2.0, "levels": [64], "concurrency": [FIXED_AT]}
    add(
        "--quick",
        action="store_true",
        help="about 40 s: the defaults become --rounds 1 --seconds 2 --levels 64 "
        f"--concurrency {FIXED_AT}, and the start of processes is not measured",
    )
    add("--rounds", type=_count, default=5, metavar="N", help="default: 5")
    add(
        "--seconds",
        type=_amount,
        default=4.0,
        metavar="SECONDS",
        help="of each measurement (default: 4)",
    )
    add(
        "--levels",
        type=_counts,
        default=[64, 256, 1024] if many else [64, 256],
        metavar="N,...",
        help="concurrent streams (default: 64,256, and 1024 with 8 cores)",
    )
    add(
        "--concurrency",
        type=_counts,
        default=[1, 16, 64],
        metavar="N,...",
        help="for answers of one token (default: 1,16,64)",
    )
    add(
        "--engines",
        type=_count,
        default=4 if many else 2,
        metavar="N",
        help="default: 2, or 4 with 8 cores",
    )
    add(
        "--clients",
        type=_count,
        default=4 if many else 1,
        metavar="N",
        help="client processes (default: 1, or 4 with 8 cores)",
    )
    add("--rate", type=_amount, default=50.0, help="tokens/s of a stream (default: 50)")
    add("--tokens", type=_count, default=64, metavar="N", help="of an answer (default: 64)")
    add(
        "--processes",
        type=_counts,
        default=[1, 4] if many else [1],
        metavar="N,...",
        help="numbers of frontend processes, each of which is a path (default: 1, and 4 with 8 "
        "cores); not auto",
    )
    add(
        "--paths",
        metavar="TEXT,...",
        help="only paths whose name contains one of these; the engines alone are always measured",
    )
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
        type=_amount,
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
        parser.set_defaults(**quick)
        options = parser.parse_args()
    if options.paths is not None:
        _check_paths(parser, options)
    return options


def _check_paths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    names = path_names(
        options.processes, router=bool(options.router_python), dynamo=bool(options.dynamo_python)
    )
    for part in _parts(options.paths):
        if not part or not any(part in name for name in names):
            parser.error(
                f"argument --paths: no path has {part!r} in its name: give parts of "
                f"{'; '.join(names)} (make bench-serving adds others with ROUTER=1 and DYNAMO=1)"
            )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _count(text: str) -> int:
    """Parse a whole number above 0."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def _counts(text: str) -> list[int]:
    """Parse whole numbers above 0, separated by commas."""
    try:
        return [_count(part) for part in _parts(text)]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers above 0, such as 1,4"
        ) from None


def _amount(text: str) -> float:
    """Parse a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return number


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
    rounds = f"medians of {options.rounds} rounds of {options.seconds:g} s"
    if options.rounds == 1:
        rounds = f"one round of {options.seconds:g} s"
    if options.long:
        rounds = f"one load of {options.long:g} s"
    connections = "kept" if options.keep_alive else "one for each request"
    return (
        f"{options.engines} simulated engines, {options.rate:g} tokens/s a stream, one event a "
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
            parts = _parts(options.paths)
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
