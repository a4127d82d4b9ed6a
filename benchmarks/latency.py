"""Compare latencies on the pages with a client's own clock: `make bench-latency`.

The benchmark starts a frontend, a worker and a real SGLang with their commands. Clients request
several streams at once from the frontend, and read their clock just before they send a request
and at each event with content. The increases of `_sum` and `_count` of the frontend's histograms
give means, which are compared with the clients' means. SGLang's own means start later and count
tokens, not events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families as parse
from starting import say, started

FIRST = "time_to_first_token_seconds"
BETWEEN = "inter_token_latency_seconds"
ALLOWED_MS = 5.0


@dataclass
class Clock:
    """Latencies by the clients' clock, in seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Mean:
    """The increase of a histogram."""

    sum: float
    count: float

    @property
    def milliseconds(self) -> float:
        return self.sum / self.count * 1e3 if self.count else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, serving(Path(directory)) as (frontend, worker):
        say("a few requests that do not count")
        asyncio.run(clients(frontend, options.at_once, options.at_once, options.tokens))
        within = True
        for number in range(1, options.rounds + 1):
            say(f"round {number}: {options.requests} streams of {options.tokens} tokens")
            within &= measure_round(frontend, worker, options)
    sys.exit(0 if within else 1)


def measure_round(frontend: str, worker: str, options: argparse.Namespace) -> bool:
    """Print one round, and return True if the frontend's means agree with the clients'."""
    families = {
        "the frontend's": (frontend, "dynamo_frontend_"),
        "SGLang's own": (worker, "sglang:"),
    }
    before = {who: read(*place) for who, place in families.items()}
    start = time.perf_counter()
    clock = asyncio.run(clients(frontend, options.requests, options.at_once, options.tokens))
    seconds = time.perf_counter() - start
    wait_until_counted(frontend, before["the frontend's"], options.requests)
    after = {who: read(*place) for who, place in families.items()}
    print(f"\n{options.requests} streams, {options.at_once} at once, in {seconds:.1f} s")
    print("\n| mean of | source | count | mean | minus the client's | within 5 ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    within = True
    for name, title, seen in (
        (FIRST, "time to first token", clock.first),
        (BETWEEN, "inter-token latency", clock.between),
    ):
        own = Mean(sum(seen), len(seen))
        print(f"| {title} | the client's clock | {own.count} | {own.milliseconds:.3f} ms | | |")
        for who in families:
            increase = Mean(
                after[who][name].sum - before[who][name].sum,
                after[who][name].count - before[who][name].count,
            )
            difference = increase.milliseconds - own.milliseconds
            near = abs(difference) <= ALLOWED_MS
            words = "yes" if near else "NO"
            if who == "the frontend's":
                within &= near and increase.count == own.count
                words += "" if increase.count == own.count else ", but THE COUNTS DIFFER"
            print(
                f"| | {who} | {increase.count:.0f} | {increase.milliseconds:.3f} ms "
                f"| {difference:+.3f} ms | {words} |"
            )
    return within


async def clients(url: str, requests: int, at_once: int, tokens: int) -> Clock:
    clock, left = Clock(), iter(range(requests))
    body = {
        "model": "tiny", "prompt": "Once upon a time", "max_tokens": tokens, "stream": True,
        "ignore_eos": True,
    }  # fmt: skip

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            times = [time.perf_counter()]
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    now = time.perf_counter()
                    if line.startswith(b"data: {") and _has_content(line):
                        times.append(now)
            clock.first.append(times[1] - times[0])
            clock.between += [later - earlier for earlier, later in pairwise(times[1:])]

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(at_once)))
    return clock


def _has_content(line: bytes) -> bool:
    return any(choice.get("text") for choice in orjson.loads(line[6:]).get("choices", ()))


def read(url: str, prefix: str) -> dict[str, Mean]:
    sums: dict[str, float] = dict.fromkeys(
        (f"{prefix}{name}_{end}" for name in (FIRST, BETWEEN) for end in ("sum", "count")), 0.0
    )
    for family in parse(asyncio.run(_page(url))):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
    return {
        name: Mean(sums[f"{prefix}{name}_sum"], sums[f"{prefix}{name}_count"])
        for name in (FIRST, BETWEEN)
    }


def wait_until_counted(url: str, before: dict[str, Mean], requests: int) -> None:
    """Wait until the frontend has counted every stream, which may be after its client's end."""
    deadline = time.monotonic() + 5
    while read(url, "dynamo_frontend_")[FIRST].count < before[FIRST].count + requests:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)


async def _page(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        return await answer.text()


@contextlib.contextmanager
def serving(place: Path) -> Iterator[tuple[str, str]]:
    """Run a frontend and a worker around SGLang; yield the URLs of their pages."""
    say("creating a tiny model, starting frontend, worker and SGLang (about half a minute)")
    model, dyno = place / "tiny", [sys.executable, "-m", "dynamometer"]
    subprocess.run([*dyno, "tiny-model", str(model)], check=True, stdout=subprocess.DEVNULL)
    variables = {"DYN_FILE_KV": str(place / "discovery"), "HF_HUB_OFFLINE": "1"}
    worker = [*dyno, "sglang", "--model", str(model), "--served-model-name", "tiny"]
    frontend_log, worker_log = place / "frontend.log", place / "worker.log"
    with (
        started([*dyno, "frontend", "--http-port", "0"], frontend_log, variables),
        started([*worker, "--enable-metrics"], worker_log, variables | {"DYN_SYSTEM_PORT": "0"}),
    ):
        url = found(frontend_log, r"OpenAI-compatible at (\S+)/v1", within=30)
        page = found(worker_log, r"metrics and health: (\S+)/metrics", within=30)
        found(frontend_log, r"serving (tiny)", within=150)
        yield url, page


def found(log: Path, pattern: str, *, within: float) -> str:
    deadline = time.monotonic() + within
    while not (match := re.search(pattern, log.read_text())):
        if time.monotonic() > deadline:
            sys.exit(f"not within {within:g} s: {pattern}\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
    return match[1]


if __name__ == "__main__":
    main()
