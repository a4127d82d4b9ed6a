"""Measure the cost of the instruments of a request: `make bench-metrics`, third part.

The benchmark compares the metrics of a request of 64 streamed tokens, in the frontend and in a
worker, with 64 calls of prometheus_client's `observe` on a histogram with as many buckets, in the
same run. Times are processor time, the minimum of several. The times cover all work that is done
only for metrics: the records, the clock, the families, the end of a stream. The table shows the
reading of events separately, because the relay has to find the usage event in any case.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import repeat

from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram

from dynamometer.engines.interface import Usage
from dynamometer.engines.streams import StreamReader
from dynamometer.frontend.request_metrics import RequestMetrics
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.names import labels
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.record import Record, Role, State
from dynamometer.settings import DEFAULT_BUCKET_RANGES
from dynamometer.worker.endpoint_metrics import EndpointMetrics

TOKENS = 64
WORKER = 7
EVENT = (
    b'data: {"id":"5d0ee5a0","object":"chat.completion.chunk","created":1795639641,"model":"m",'
    b'"choices":[{"index":0,"delta":{"role":null,"content":" token","reasoning_content":null,'
    b'"tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}'
    b"\n\n"
)
USAGE = (
    b'data: {"id":"5d0ee5a0","object":"chat.completion.chunk","created":1795639641,"model":"m",'
    b'"choices":[],"usage":{"prompt_tokens":20,"total_tokens":84,"completion_tokens":64,'
    b'"prompt_tokens_details":{"cached_tokens":16},"reasoning_tokens":0}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=500, help="requests in each of 15 repetitions"
    )
    requests = parser.parse_args().requests
    reference, *ours = minimum_times(
        [observations(), frontend(), worker(), frontend(read=True)], requests=requests
    )
    names = ("frontend", "worker", "frontend, reading the events too")
    print(f"\nInstruments of a request of {TOKENS} streamed tokens, µs of processor time")
    print(f"  {TOKENS} x prometheus_client's observe: {reference * 1e6:.1f}")
    for name, found in zip(names, ours, strict=True):
        print(f"  {name}: {found * 1e6:.1f} ({found / reference:.2f} of prometheus_client's)")


def minimum_times(works: Sequence[Callable[[], object]], *, requests: int) -> list[float]:
    """Return the minimum processor time of a call of each function, seconds; calls alternate."""
    found: list[list[float]] = [[] for _ in works]
    for _ in range(15):
        for times, work in zip(found, works, strict=True):
            start = time.process_time()
            for _ in repeat(None, requests):
                work()
            times.append((time.process_time() - start) / requests)
    return [min(times) for times in found]


def observations() -> Callable[[], object]:
    """Return a function that calls prometheus_client's `observe` for each token."""
    bounds = FrontendBuckets.of(DEFAULT_BUCKET_RANGES).inter_token_latency
    family = TheirHistogram("itl", "", ("model",), buckets=bounds, registry=CollectorRegistry())
    observe = family.labels("m").observe

    def work() -> None:
        for _ in repeat(None, TOKENS):
            observe(0.004)

    return work


def frontend(*, read: bool = False) -> Callable[[], object]:
    """Return a function that records one request as `frontend.forwarding` does."""
    metrics = FrontendMetrics(CollectorRegistry())
    record = Record(
        role=Role.WORKER, id=WORKER, namespace="", component="", models=("m",),
        request_url="http://127.0.0.1:1", state=State.READY,
    )  # fmt: skip
    fleet = Fleet()
    metrics.follow(fleet)
    fleet.update([record])
    done = StreamReader(Usage.OPENAI, hide_usage=True)
    done.feed(USAGE, 0.0)

    def work() -> None:
        request = RequestMetrics(metrics, "chat_completions")
        request.record_body("m", stream=True)
        request.start_routing()
        request.start_dispatch(WORKER)
        reader = done
        if read:
            reader = StreamReader(Usage.OPENAI, hide_usage=True, on_content=request.record_content)
        for _ in repeat(None, TOKENS):
            now = time.perf_counter()
            if request.waiting:
                request.record_first_bytes(now)
            if read:
                reader.feed(EVENT, now)
            else:
                request.record_content(now)
            if reader.ended:
                request.record_stream_end(reader.error_code)
        if read:
            reader.feed(USAGE, 0.0)
            reader.feed(DONE, 0.0)
        request.record_stream_end(None)
        request.record_stream(reader)
        request.finish()

    return work


def worker() -> Callable[[], object]:
    """Return a function that records one request as `worker.endpoint` does."""
    runtime = DistributedRuntime()
    endpoint = runtime.endpoint("dynamo", "backend", "generate")
    metrics = EndpointMetrics(endpoint.metrics, runtime.registry, {labels.MODEL: "m"})

    def work() -> None:
        with metrics.request() as count:
            count.record_status(200)
            for _ in repeat(None, TOKENS):
                count.add_chunk(EVENT)
                count.end.add_chunk(EVENT)

    return work


if __name__ == "__main__":
    main()
