"""`/engine_metrics` and `/loads` of a real frontend, over real workers and an exporter."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporting import Exporter, exporter
from page_values import value
from processes import PYTHON, Process, running
from prometheus import needs_prometheus, running_prometheus
from stack import Stack, Worker, eventually, http, ops_url

FLAGS = ("--engine", "mocker", "--model", "mock", "--enable-metrics")
# The time for a page with a late worker: one second, and some for this machine.
LONGEST_SECONDS = 1.2


@dataclass
class Fleet:
    """Two workers, and an exporter beside a third engine.

    Attributes:
        frontends: the ops listeners of a frontend of one process, and of one of two processes.
    """

    stack: Stack
    processes: list[Process]
    frontends: list[str]
    workers: list[Worker]
    exporter: Exporter

    def page(self, query: str = "") -> str:
        answer = http(f"{self.frontends[0]}/engine_metrics{query}")
        assert answer.status == 200
        return answer.body.decode()

    def loads(self) -> Any:
        return json.loads(http(f"{self.frontends[0]}/loads").body)

    def up(self) -> Mapping[str, float]:
        line = re.compile(r'^dynamometer_fleet_up\{worker_id="(\w+)"\} (\S+)', re.MULTILINE)
        return {worker: float(up) for worker, up in line.findall(self.page())}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("fleet")
    stack = Stack(directory, Path("mock"), directory / "discovery")
    with ExitStack() as context:
        frontends = [
            context.enter_context(stack.run_frontend("--ops-port", "0", "--processes", number))[0]
            for number in ("1", "2")
        ]
        workers = [context.enter_context(stack.run_worker(*FLAGS)) for _ in range(2)]
        command = [PYTHON, "-m", "dynamometer.mocker", "--port", "0", "--model", "other"]
        engine = context.enter_context(running(command, directory / "mocker.log", {}))
        url = engine.wait_for(r"serving other at (http://[^;]+);", within=20)[1]
        beside = context.enter_context(exporter(directory, "--engine-url", url))
        listeners = [ops_url(frontend) for frontend in frontends]
        found = Fleet(stack, frontends, listeners, workers, beside)
        for worker in workers:
            worker.wait_until_ready()
        eventually(lambda: "sglang:" in beside.page(), within=30, what="the exporter's page")
        yield found


def id_of(worker: Worker) -> str:
    found = re.search('worker_id="([0-9a-f]{16})"', worker.page())
    assert found
    return found[1]


def engine_lines(page: str) -> set[str]:
    return {line for line in page.splitlines() if re.match("sglang:(num_|.*tokens_total)", line)}


def test_the_values_are_those_of_the_pages_of_workers_and_exporters(fleet: Fleet) -> None:
    body = {"model": "mock", "prompt": "hi", "max_tokens": 3}
    for worker in fleet.workers:
        assert http(f"{worker.request_url}/v1/completions", body).status == 200
    lines = engine_lines(fleet.page())
    for worker in fleet.workers:
        own = engine_lines(worker.page())
        assert len(own) > 3
        # The simulated ranks change some values all the time.
        constant = {line for line in own if "stage_" not in line}
        assert constant <= lines
    assert value(fleet.page(), "sglang:generation_tokens_total", model_name="mock") == 6
    others = [line for line in lines if 'model_name="other"' in line]
    assert others
    assert all(re.search('worker_id="[0-9a-f]{16}"', line) for line in others)


def test_every_process_with_an_engine_is_up_and_no_frontend_is_shown(fleet: Fleet) -> None:
    up = fleet.up()
    assert set(up.values()) == {1}
    assert len(up) == 3
    assert {id_of(worker) for worker in fleet.workers} <= set(up)
    names = set(re.findall("^([a-z_:]+)[{ ]", fleet.page(), re.MULTILINE))
    assert not [name for name in names if name.startswith("dynamo_")]


def test_a_frontend_of_two_processes_has_the_same_page(fleet: Fleet) -> None:
    for route in ("engine_metrics", "loads"):
        one, two = (http(f"{url}/{route}").body.decode() for url in fleet.frontends)
        workers = set(re.findall('worker_id"?[=:] ?"([0-9a-f]{16})', one))
        assert workers
        # Each page also has the errors of its own frontend.
        assert len(workers ^ set(re.findall('worker_id"?[=:] ?"([0-9a-f]{16})', two))) in (0, 2)


def test_a_page_can_be_selected_compressed_and_negotiated(fleet: Fleet) -> None:
    page = fleet.page("?name[]=sglang:num_running_reqs&name[]=dynamometer_fleet_up")
    types = re.findall("^# TYPE (\\S+)", page, re.MULTILINE)
    assert types == ["dynamometer_fleet_up", "sglang:num_running_reqs"]
    url = f"{fleet.frontends[0]}/engine_metrics"
    answer = http(url, Accept="application/openmetrics-text;version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")
    answer = http(url, **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"


def test_the_page_of_the_fleet_is_not_a_target(fleet: Fleet) -> None:
    """Prometheus would count each series twice."""
    groups = json.loads(http(f"{fleet.frontends[0]}/sd").body)
    assert len(groups) == 5
    ops = {url.removeprefix("http://") for url in fleet.frontends}
    for group in groups:
        assert not ops & set(group["targets"])
        assert "__metrics_path__" not in group["labels"]


def test_the_load_of_each_worker_follows_its_requests(fleet: Fleet) -> None:
    found = fleet.loads()
    workers = {one["worker_id"]: one for one in found["workers"]}
    assert len(workers) == 3
    for worker in fleet.workers:
        shown = workers[id_of(worker)]
        assert (shown["state"], shown["error"], shown["running"]) == ("ready", None, 0)
        assert 0 <= shown["age_seconds"] < 5
        assert [rank["dp_rank"] for rank in shown["ranks"]] == ["0"]
    assert (found["total"]["workers"], found["total"]["answered"]) == (3, 3)


@needs_prometheus
def test_prometheus_reads_the_page(fleet: Fleet, tmp_path: Path) -> None:
    job = {
        "job_name": "fleet",
        "metrics_path": "/engine_metrics",
        "scrape_interval": "1s",
        "static_configs": [{"targets": [fleet.frontends[0].removeprefix("http://")]}],
    }
    with running_prometheus({"scrape_configs": [job]}, tmp_path / "prometheus") as prometheus:
        prometheus.wait_for('up{job="fleet"} == 1')
        found = prometheus.values("dynamometer_fleet_up", "worker_id")
        assert found == fleet.up()
        running = prometheus.values("sglang:num_running_reqs", "worker_id")
        assert {id_of(worker) for worker in fleet.workers} <= set(running)
        assert "duplicate" not in prometheus.process.log


def test_a_frozen_worker_is_late_and_a_killed_one_is_down(fleet: Fleet) -> None:
    frozen = fleet.workers[0]
    frozen_id = id_of(frozen)
    log = fleet.processes[0]
    with fleet.stack.run_worker(*FLAGS) as killed:
        killed.wait_until_ready()
        killed_id = id_of(killed)
        eventually(lambda: fleet.up().get(killed_id) == 1, within=10, what="it is up")
        frozen.process.signal(signal.SIGSTOP)
        killed.process.signal(signal.SIGKILL)
        killed.process.wait(within=10)
        try:
            eventually(lambda: fleet.up().get(killed_id) == 0, within=10, what="it is down")
            started = time.monotonic()
            page = fleet.page()
            assert time.monotonic() - started < LONGEST_SECONDS
            up = fleet.up()
            assert (up[frozen_id], up[killed_id], sum(up.values())) == (0, 0, 2)
            for worker in (frozen_id, killed_id):
                series = [line for line in page.splitlines() if f'worker_id="{worker}"' in line]
                assert {re.split("[{ ]", line)[0] for line in series} == {
                    "dynamometer_fleet_up",
                    "dynamometer_fleet_last_success_timestamp_seconds",
                }
            workers = {one["worker_id"]: one for one in fleet.loads()["workers"]}
            assert workers[frozen_id]["error"]["reason"] == "timeout"
            assert workers[killed_id]["error"]["message"] == "Connection refused"
        finally:
            frozen.process.signal(signal.SIGCONT)
    eventually(lambda: fleet.up()[frozen_id] == 1, within=20, what="it answers again")
    lines = [line for line in log.log.splitlines() if frozen_id in line and "the page of" in line]
    assert len(lines) == 2, lines
    assert "is omitted: no page within 0.8 s" in lines[0]
    assert "can be read again" in lines[1]
