"""Processes that write multiprocess files, as an engine's ranks do."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Final, Literal

from dynamometer.engines.sglang_names import sglang
from dynamometer.mocker.options import MockerOptions
from dynamometer.names import labels

# A histogram of a label set has this many lines: 14 bounds, +Inf, sum and count.
_BOUNDS: Final = tuple(0.001 * 2**n for n in range(14))
LINES_OF_A_HISTOGRAM: Final = len(_BOUNDS) + 3
_PR_SET_PDEATHSIG: Final = 1


@contextlib.contextmanager
def writing(options: MockerOptions) -> Iterator[list[BaseProcess]]:
    """Let `options.processes` processes write while the context is open."""
    context = multiprocessing.get_context("spawn")
    writers: list[BaseProcess] = [
        context.Process(target=write, args=(options, rank), name=f"mocker-rank-{rank}", daemon=True)
        for rank in range(options.processes)
    ]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.terminate()
        for writer in writers:
            writer.join(5)


def write(options: MockerOptions, rank: int) -> None:
    """Write this rank's part of the series, then change a part of them at each interval.

    Runs until it is ended; needs `PROMETHEUS_MULTIPROC_DIR`.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends us
    if os.getppid() == 1:
        return
    # Only here: prometheus_client chooses its files by the environment when it is imported.
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    registry = CollectorRegistry()
    names = (labels.MODEL_NAME, labels.ENGINE_TYPE, labels.TP_RANK, labels.STAGE)
    constant = (options.model, "mocker", str(rank))
    share = options.series // max(options.processes, 1)
    sets = max(share // (LINES_OF_A_HISTOGRAM + 2), 1)
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

    def gauge(name: str, text: str, of: tuple[str, ...]) -> Gauge:
        mode: Literal["mostrecent"] = "mostrecent"
        return Gauge(name, f"Simulated: {text}", of, registry=registry, multiprocess_mode=mode)

    used = gauge(sglang.NUM_USED_TOKENS, "tokens in the KV cache, of each stage.", names)
    usage = gauge(sglang.TOKEN_USAGE, "the token usage.", names[:-1]).labels(*constant)
    series = []
    for number in range(sets):
        values = (*constant, f"stage_{number}")
        series.append((latency.labels(*values), tokens.labels(*values), used.labels(*values)))
    chance = random.Random(rank)  # noqa: S311  # no secret
    while True:
        usage.set(chance.random())
        changed = chance.sample(series, round(len(series) * options.change))
        for histogram, counter, tokens_used in changed:
            histogram.observe(chance.expovariate(100))
            counter.inc(chance.randrange(1, 100))
            tokens_used.set(chance.randrange(1000))
        time.sleep(options.interval)
