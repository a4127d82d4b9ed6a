"""The rounds of `make bench-serving`: each path gets the same loads, one after another."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from serving_load import FailedAnswersError, Run, Shape, reference, run
from serving_machine import cpu_seconds, resident_bytes
from serving_paths import DIRECT, OURS, RELAY, ROUTER, ServingPath
from serving_report import Results
from starting import say

SCRAPES_A_SECOND = 20
FIRST_TOKEN_SECONDS = 0.05
FIXED_AT = 16  # the concurrency at which the fixed part of a request is measured
_BASE = f"{RELAY}, 2 hops"

Row = dict[str, float | str]


class Bench:
    """The measurements of all paths; results and faults are added to `results`."""

    def __init__(
        self, options: argparse.Namespace, shape: Shape, paths: list[ServingPath], results: Results
    ) -> None:
        self._options = options
        self._shape = shape
        self._paths = paths
        self._results = results
        self._streams: dict[tuple[str, int], list[Row]] = {}
        self._requests: dict[tuple[str, int], list[Row]] = {}
        self._failed: set[tuple[str, int]] = set()
        self._loads = 0
        self._done = 0

    def plan(self) -> float:
        """Count the loads of all rounds; return the seconds that they take, roughly."""
        options, paths = self._options, len(self._paths)
        scraped = options.scraped * sum(path.name == OURS for path in self._paths)
        streams: int = options.rounds * (paths * len(options.levels) + scraped)
        requests: int = min(3, options.rounds) * paths * len(options.concurrency)
        self._loads = streams + requests
        one_load = float(options.seconds) + 1
        return streams * (one_load + 2 * self._shape.seconds) + requests * one_load

    def measure_idle(self) -> None:
        """Measure processor time and memory before the first request."""
        seconds = 2.0 if self._options.quick else 5.0
        say(f"{seconds:.0f} s without traffic")
        time.sleep(1.0)
        groups = [(path.front, path.back) for path in self._paths]
        before = [tuple(map(cpu_seconds, pair)) for pair in groups]
        time.sleep(seconds)
        after = [tuple(map(cpu_seconds, pair)) for pair in groups]
        for path, one, two in zip(self._paths, before, after, strict=True):
            if not path.hops:
                continue
            row: Row = {"path": path.name, "hops": path.hops}
            for name, group, used in zip(
                ("front", "back"), (path.front, path.back), map(_minus, two, one), strict=True
            ):
                if group:
                    row[f"{name} share"] = used / seconds / len(group)
                    row[f"{name} bytes"] = resident_bytes(group) / len(group)
            self._results.idle.append(row)

    def measure_streams(self) -> None:
        """Measure each path at each number of streams, in rounds."""
        checksum = reference(self._direct, self._shape)
        cases: list[tuple[ServingPath, int, float]] = [
            (path, level, 0) for level in self._options.levels for path in self._paths
        ]
        if self._options.scraped:
            level = self._options.levels[min(1, len(self._options.levels) - 1)]
            cases += [(p, level, SCRAPES_A_SECOND) for p in self._paths if p.name == OURS]
        for number in range(self._options.rounds):
            for path, level, scrapes in cases:
                name = path.name + (", scraped" if scrapes else "")
                self._measure(
                    self._streams, f"round {number + 1}", name, path, level,
                    lambda path=path, level=level, scrapes=scrapes: run(  # type: ignore[misc]
                        path, self._shape, streams=level, seconds=self._options.seconds,
                        clients=self._options.clients, checksum=checksum,
                        scrapes_a_second=scrapes,
                    ),
                )  # fmt: skip
            self._results.rows = self._medians(self._streams, self._add_ratio)
            self._add_memory()
            self._save()

    def measure_requests(self) -> None:
        """Measure answers of one token: the latency that a path adds, and its fixed cost."""
        shape = Shape(
            tokens=1, rate=self._shape.rate, first_token_seconds=FIRST_TOKEN_SECONDS,
            keep_alive=self._options.keep_alive,
        )  # fmt: skip
        checksum = reference(self._direct, shape)
        rounds = min(3, self._options.rounds)
        for number in range(rounds):
            for level in self._options.concurrency:
                for path in self._paths:
                    self._measure(
                        self._requests, f"round {number + 1}, one token", path.name, path, level,
                        lambda path=path, level=level: run(  # type: ignore[misc]
                            path, shape, streams=level, seconds=self._options.seconds,
                            clients=self._options.clients, checksum=checksum,
                        ),
                    )  # fmt: skip
            self._results.requests = self._medians(self._requests, self._add_latency)
            self._save()

    def run_long(self, seconds: float) -> None:
        """Run one load for a long time; its check is the result."""
        checksum = reference(self._direct, self._shape)
        level = max(self._options.levels)
        for path in self._paths:
            if not path.name.startswith(OURS):
                continue
            say(f"{path.name}, {level} streams: {seconds:.0f} s")
            self._measure(
                self._streams, "long", path.name, path, level,
                lambda path=path: run(  # type: ignore[misc]
                    path, self._shape, streams=level, seconds=seconds,
                    clients=self._options.clients, checksum=checksum,
                ),
            )  # fmt: skip
        self._results.rows = self._medians(self._streams, lambda _: None)
        for row in self._results.rows:
            say(f"{row['path']}: {row['answers']:,.0f} answers, all complete and correct")

    def _save(self) -> None:
        """Write the figures of the rounds until now, in case that a later one is interrupted."""
        if self._options.results:
            self._results.save(self._options.results)

    @property
    def _direct(self) -> ServingPath:
        return next(path for path in self._paths if path.name == DIRECT)

    def _measure(
        self, rows: dict[tuple[str, int], list[Row]], title: str, name: str, path: ServingPath,
        level: int, load: Callable[[], Run],
    ) -> None:  # fmt: skip
        self._done += 1
        place = f"{self._done}/{self._loads}, " if self._loads else ""
        if (name, level) in self._failed:
            return
        unit = "chunk" if rows is self._streams else "request"
        load_name = f"{level} streams" if unit == "chunk" else f"concurrency {level}"
        try:
            done = load()
        except FailedAnswersError as error:
            self._failed.add((name, level))
            self._results.faults.append(f"{title}, {name}, {load_name}: {error}")
            say(self._results.faults[-1])
            return
        row: Row = {"path": name, "streams": level, "hops": path.hops, **done.values()}
        rows.setdefault((name, level), []).append(row)
        say(
            f"{place}{title}: {name}, {load_name}: "
            f"{row[f'{unit}s/s']:.0f} {unit}s/s, "
            f"TTFT p50 {row['first p50']:.1f} p99 {row['first p99']:.1f} ms, "
            f"CPU {_cost(row, unit):.1f} µs a {unit}"
        )

    def _medians(
        self, rows: dict[tuple[str, int], list[Row]], complete: Callable[[dict[str, Row]], None]
    ) -> list[Row]:
        """Return one row for each path and level: the medians of the rounds that all have ended.

        Args:
            rows: by path and level, one for each round.
            complete: adds figures to the rows of one level in one round, by path.
        """
        found = {key: each for key, each in rows.items() if key not in self._failed}
        for level in dict.fromkeys(level for _, level in found):
            of_level = {name: each for (name, one), each in found.items() if one == level}
            for number in range(max(map(len, of_level.values()))):
                complete({name: each[number] for name, each in of_level.items()})
        return [
            {
                name: statistics.median(float(row[name]) for row in each)
                if isinstance(value, float | int) else value
                for name, value in each[0].items()
            }
            for each in found.values()
        ]  # fmt: skip

    def _add_ratio(self, rows: dict[str, Row]) -> None:
        for column, base in (("ratio", _BASE), ("router ratio", ROUTER)):
            for row in rows.values() if base in rows else ():
                if row["hops"]:
                    row[column] = _cost(row, "chunk") / _cost(rows[base], "chunk")

    def _add_latency(self, rows: dict[str, Row]) -> None:
        chunks = {str(row["path"]): _cost(row, "chunk") for row in reversed(self._results.rows)}
        for row in rows.values():
            if row["hops"] and row["streams"] == FIXED_AT and row["path"] in chunks:
                row["fixed"] = _cost(row, "request") - chunks[str(row["path"])]
            if DIRECT in rows:
                for share in ("p50", "p99"):
                    base = float(rows[DIRECT][f"total {share}"])
                    row[f"added {share}"] = float(row[f"total {share}"]) - base

    def _add_memory(self) -> None:
        """Add the memory of a stream to the idle rows, from the first round."""
        for idle in self._results.idle:
            first = {
                level: rows[0] for (name, level), rows in self._streams.items()
                if name == idle["path"] and (name, level) not in self._failed
            }  # fmt: skip
            if len(first) > 1:
                low, high = min(first), max(first)
                for name in ("front", "back"):
                    if f"{name} bytes" in idle:
                        more = float(first[high][f"{name} bytes"])
                        more -= float(first[low][f"{name} bytes"])
                        idle[f"{name} stream bytes"] = more / (high - low)


def _cost(row: Row, unit: str) -> float:
    return float(row[f"front a {unit}"]) + float(row[f"back a {unit}"])


def _minus(one: float, two: float) -> float:
    return one - two
