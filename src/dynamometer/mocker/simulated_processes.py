"""Processes that write multiprocess files, as the ranks of an engine do."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Final, Literal

from dynamometer.engines.sglang_names import sglang
from dynamometer.names import labels
from dynamometer.process.parent_death import die_with_parent

_BOUNDS: Final = tuple(0.001 * 2**n for n in range(14))
# The bounds, +Inf, the sum and the count.
_HISTOGRAM_LINES: Final = len(_BOUNDS) + 3


@dataclass(frozen=True, kw_only=True)
class SimulatedSeries:
    """The number and the rate of change of the series that the simulated processes write.

    Attributes:
        model: the label `model_name`.
        processes: the number of processes.
        lines: the number of sample lines of all processes together.
        change: the fraction of the series that changes at each interval, 0 to 1.
        interval: seconds between two changes.
    """

    model: str
    processes: int
    lines: int
    change: float
    interval: float


@contextlib.contextmanager
def writing(series: SimulatedSeries) -> Iterator[None]:
    """Run the processes that write the series while the context is open."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(
            target=write, args=(series, rank, os.getpid()), name=f"mocker-rank-{rank}", daemon=True
        )
        for rank in range(series.processes)
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)


def write(series: SimulatedSeries, rank: int, server: int) -> None:
    """Write one rank's part of the series, then change a fraction of them at each interval.

    Runs until the process is killed; requires `PROMETHEUS_MULTIPROC_DIR`.

    Args:
        series: the series of all ranks.
        rank: the number of this rank.
        server: the pid of the parent.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C, the server ends its processes
    if os.getppid() != server:  # the server ended before the call
        return
    # Not imported at the top: prometheus_client reads the variable when it is imported.
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    registry = CollectorRegistry()
    names = (labels.MODEL_NAME, labels.ENGINE_TYPE, labels.TP_RANK, labels.STAGE)
    constant = (series.model, "mocker", str(rank))
    lines = series.lines // max(series.processes, 1)
    label_sets = max(lines // (_HISTOGRAM_LINES + 2), 1)
    latency = Histogram(
        sglang.PER_STAGE_REQ_LATENCY_SECONDS,
        "Simulated: the latency of each stage of a request.",
        names,
        buckets=_BOUNDS,
        registry=registry,
    )
    tokens = Counter(
        sglang.REALTIME_TOKENS_TOTAL, "Simulated: tokens processed.", names, registry=registry
    )

    def gauge(name: str, text: str, label_names: tuple[str, ...]) -> Gauge:
        mode: Literal["mostrecent"] = "mostrecent"
        return Gauge(
            name, f"Simulated: {text}", label_names, registry=registry, multiprocess_mode=mode
        )

    used = gauge(sglang.NUM_USED_TOKENS, "tokens in the KV cache, of each stage.", names)
    usage = gauge(sglang.TOKEN_USAGE, "the token usage.", names[:-1]).labels(*constant)
    instruments = []
    for number in range(label_sets):
        values = (*constant, f"stage_{number}")
        instruments.append((latency.labels(*values), tokens.labels(*values), used.labels(*values)))
    randomness = random.Random(rank)  # noqa: S311  # not a secret
    while True:
        usage.set(randomness.random())
        changed = randomness.sample(instruments, round(len(instruments) * series.change))
        for histogram, counter, tokens_used in changed:
            histogram.observe(randomness.expovariate(100))
            counter.inc(randomness.randrange(1, 100))
            tokens_used.set(randomness.randrange(1000))
        time.sleep(series.interval)
