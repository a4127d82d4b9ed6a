"""A process of your own on the page: a counter, a gauge and a histogram, and a gauge by a callback.

    python examples/own_metrics.py
    curl -s localhost:8081/metrics | grep dynamo_component_example

It works through made-up jobs until Ctrl-C. DYN_SYSTEM_PORT chooses another port.
"""

from __future__ import annotations

import random
import sys
import time

from dynamometer.errors import DynamometerError
from dynamometer.runtime import DistributedRuntime


def main() -> None:
    """Serve the page, and work."""
    runtime = DistributedRuntime()
    endpoint = runtime.namespace("examples").component("jobs").endpoint("work")
    metrics = endpoint.metrics

    # These are prometheus_client's own instruments; the labels of namespace, component and
    # endpoint are on their series without anybody naming them.
    jobs = metrics.create_counter("example_jobs", "Jobs that were done", ("outcome",))
    running = metrics.create_gauge("example_running_jobs", "Jobs that run now")
    duration = metrics.create_histogram(
        "example_job_duration_seconds", "How long jobs take", buckets=(0.01, 0.02, 0.05, 0.1)
    )
    # A label set that is known is best shown at 0 from the beginning: rate() sees its first job.
    outcomes = {outcome: jobs.labels(outcome) for outcome in ("done", "failed")}

    # What is cheap to look up is set when somebody asks, by a callback before each scrape.
    begun = time.time()
    age = metrics.create_gauge("example_age_seconds", "How long this example runs")
    metrics.register_callback(lambda: age.set(time.time() - begun))

    with runtime.serve() as server:
        where = f"{server.url}/metrics" if server.url else "not served (DYN_SYSTEM_PORT=-1)"
        print(f"metrics: {where}; Ctrl-C ends", flush=True)
        # What happens by itself is counted where it happens, here in a loop.
        while True:
            with running.track_inprogress(), duration.time():
                time.sleep(random.uniform(0.005, 0.06))
            outcomes["failed" if random.random() < 0.1 else "done"].inc()


if __name__ == "__main__":
    try:
        main()
    except DynamometerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
