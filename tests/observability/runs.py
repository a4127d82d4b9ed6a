"""The real stack under all kinds of requests and faults, recorded by real Prometheus servers.

Each server scrapes one set of pages, with the configuration that `dyno observe` writes for it: no
query can read the series of another set.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from recorded import Recorded
from traffic import FLAGS, Traffic

from dynamometer.observability import configuration
from dynamometer.observability.configuration import Targets
from exporting import exporter
from page_values import value
from processes import PYTHON, running
from prometheus import Prometheus, running_prometheus
from stack import Stack, Worker, eventually

SCRAPE_SECONDS = 1
INTERVAL = f"{SCRAPE_SECONDS}s"
WORKER_ID = "observed"
RESTARTS = "dynamometer_engine_restarts_total"


@contextlib.contextmanager
def recorded_runs(model: Path, directory: Path) -> Iterator[Mapping[str, Recorded]]:
    """Run the stack with all kinds of requests and faults; yield what each Prometheus has recorded.

    Yields:
        `stack`: the pages of the frontend and the worker; `exporter`: the page of an exporter
        beside the same engine; `fleet`: the frontend's /engine_metrics.
    """
    stack = Stack(directory, model, directory / "discovery")
    flags = ("--model", str(model), "--enable-metrics", "--worker-id", WORKER_ID, *FLAGS)
    with contextlib.ExitStack() as servers:
        with contextlib.ExitStack() as processes:
            frontend, url = processes.enter_context(stack.run_frontend("--ops-port", "0"))
            worker = processes.enter_context(stack.run_worker(*flags))
            elsewhere = directory / "elsewhere"  # the frontend does not find the exporter
            elsewhere.mkdir()
            beside = processes.enter_context(exporter(elsewhere, "--pid", _engine(worker)))
            ops = frontend.wait_for(r"ops routes at http://(\S+): ", within=20)[1]
            sets = {
                "stack": _written(Targets(sd_url=f"http://{ops}/sd", interval=INTERVAL)),
                "exporter": _written(
                    Targets(sd_url="", exporters=[_address(beside.url)], interval=INTERVAL)
                ),
                "fleet": {"prometheus.yml": _fleet(ops)},
            }
            start = time.time()
            started = {
                name: servers.enter_context(_prometheus(files, directory / f"prometheus-{name}"))
                for name, files in sets.items()
            }
            worker.wait_until_ready()
            started["stack"].wait_for("count(up) == 2")
            _change_everything(stack, worker, Traffic(url, str(model)), [*started.values()])
            end = time.time()
        yield {name: Recorded(server, start, end) for name, server in started.items()}


def _engine(worker: Worker) -> str:
    """Wait until the worker has started its engine, and return the engine's pid."""

    def started() -> bool:
        with contextlib.suppress(ValueError, psutil.Error):
            return "sglang.launch_server" in worker.engine.cmdline()
        return False

    eventually(started, within=20, what=f"the engine starts\n{worker.process.log[-2000:]}")
    return str(worker.engine.pid)


def _written(targets: Targets) -> Mapping[str, str]:
    """Return the files of Prometheus that `dyno observe` writes."""
    files = configuration.files(Path("/"), targets, prometheus_url="http://127.0.0.1")
    prefix = str(Path(configuration.PROMETHEUS_FILE).parent)
    return {
        str(Path(name).relative_to(prefix)): content.decode()
        for name, content in files.items()
        if Path(name).is_relative_to(prefix)
    }


def _fleet(address: str) -> str:
    """Return the configuration of a user who scrapes the frontend's /engine_metrics only."""
    job = {
        "job_name": "fleet",
        "metrics_path": "/engine_metrics",
        "static_configs": [{"targets": [address]}],
    }
    return json.dumps({"global": {"scrape_interval": INTERVAL}, "scrape_configs": [job]})


@contextlib.contextmanager
def _prometheus(files: Mapping[str, str], directory: Path) -> Iterator[Prometheus]:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    with running_prometheus(files["prometheus.yml"], directory) as server:
        yield server


def _change_everything(
    stack: Stack, worker: Worker, traffic: Traffic, servers: list[Prometheus]
) -> None:
    # A rate needs a scrape before an increase, and one after it.
    for _ in range(2):
        traffic.send_all()
        _wait_for_scrapes(servers)
    drain = [PYTHON, "-m", "dynamometer.cli", "drain", WORKER_ID, "--timeout", "20"]
    with running(drain, stack.directory / "drain.log", stack.environment) as process:
        assert process.wait(within=30) == 0, process.log
    eventually(lambda: traffic.fail() == 503, within=10, what="a request without a worker")
    worker.scheduler.kill()
    eventually(lambda: value(worker.page(), RESTARTS) == 1, within=60, what="the engine restarts")
    _wait_for_scrapes(servers)


def _wait_for_scrapes(servers: list[Prometheus]) -> None:
    """Wait until each server has scraped all of its pages again."""
    now = time.time()
    for server in servers:

        def scraped(server: Prometheus = server) -> bool:
            (oldest,) = server.query("min(timestamp(up))")
            return float(oldest["value"][1]) > now

        eventually(scraped, within=30, what="a scrape of each page")


def _address(url: str) -> str:
    return url.removeprefix("http://")
