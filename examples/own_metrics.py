"""Metrics of your own process: a counter, a gauge, a histogram, and a gauge that a callback sets.

    python examples/own_metrics.py
    curl -s localhost:8081/metrics | grep dynamo_component_example

The program simulates jobs until Ctrl-C. DYN_SYSTEM_PORT sets another port.
"""

from __future__ import annotations

import random
import sys
import time

from dynamometer.errors import DynamometerError
from dynamometer.runtime import DistributedRuntime


def main() -> None:
    """Serve the page, and run the jobs."""
    runtime = DistributedRuntime()
    endpoint = runtime.namespace("examples").component("jobs").endpoint("work")
    metrics = endpoint.metrics

    # These are prometheus_client's own instruments. The page adds the labels of namespace,
    # component and endpoint.
    jobs = metrics.create_counter("example_jobs", "Jobs that were done", ("outcome",))
    running = metrics.create_gauge("example_running_jobs", "Jobs in progress")
    duration = metrics.create_histogram(
        "example_job_duration_seconds", "Duration of jobs", buckets=(0.01, 0.02, 0.05, 0.1)
    )
    # Create known label sets at the start, at 0: rate() then sees the first job.
    outcomes = {outcome: jobs.labels(outcome) for outcome in ("done", "failed")}

    # Set a value that is cheap to compute in a callback before each scrape.
    started = time.time()
    age = metrics.create_gauge("example_age_seconds", "Time since the start of this example")
    metrics.register_callback(lambda: age.set(time.time() - started))

    with runtime.serve() as server:
        where = f"{server.url}/metrics" if server.url else "not served (DYN_SYSTEM_PORT=-1)"
        print(f"metrics: {where}; Ctrl-C ends", flush=True)
        # Count events where they happen, here in a loop.
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
