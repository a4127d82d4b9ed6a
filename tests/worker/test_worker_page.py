"""A worker's own families and health, around a simulated engine."""

from __future__ import annotations

import csv
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse

import dynamometer
from dynamometer.runtime.record import Record
from processes import PYTHON, running
from stack import Stack, Worker, http

FLAGS = ("--engine", "mocker", "--model", "mock", "--enable-metrics")
# Of which the sample has a header and no series, so that nothing is known of its labels.
WITHOUT_SERIES = {"dynamo_component_kv_cache_hit_rate"}
TSV = Path(__file__).parent.parent / "samples" / "dynamo-metrics.tsv"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    directory = tmp_path_factory.mktemp("worker")
    return Stack(directory, directory, directory / "discovery")


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Iterator[Worker]:
    with stack.run_worker(*FLAGS) as made:
        yield made.wait_until_ready()


def families(worker: Worker) -> dict[str, Metric]:
    return {family.name: family for family in parse(worker.page())}


def test_families_that_the_peer_has_are_as_the_peers(worker: Worker) -> None:
    with TSV.open(encoding="utf-8") as file:
        theirs = {
            row["name"]: row
            for row in csv.DictReader(file, delimiter="\t")
            if row["where"] == "worker :8081" and row["name"] not in WITHOUT_SERIES
        }
    compared = 0
    for family in families(worker).values():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name not in theirs:
            continue
        compared += 1
        row = theirs[name]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        buckets = {float(s.labels["le"]) for s in family.samples if "le" in s.labels}
        assert family.type == row["type"], name
        assert labels == set(filter(None, row["labels"].split(","))), name
        assert buckets == {float(bound) for bound in row["buckets"].split()}, name
    assert compared >= 10


def test_what_runs_is_said(worker: Worker) -> None:
    (sample,) = families(worker)["dynamometer_build_info"].samples
    assert sample.labels == {
        "version": dynamometer.__version__,
        "engine": "mocker",
        "engine_version": "mocker",
        "python_version": platform.python_version(),
    }
    (load,) = families(worker)["dynamo_component_model_load_time_seconds"].samples
    assert load.value > 0


def test_the_page_shows_the_workers_part(worker: Worker) -> None:
    (sample,) = families(worker)["dynamometer_worker_info"].samples
    part = {"mode": "aggregated", "node_rank": "0", "nodes": "1"}
    (inflight,) = families(worker)["dynamo_component_inflight_requests"].samples
    assert (sample.labels, sample.value) == ({**inflight.labels, **part}, 1)


def test_the_first_page_has_the_counters_at_zero(worker: Worker) -> None:
    found = families(worker)
    for name in ("requests", "request_bytes", "response_bytes", "cancellation", "errors"):
        samples = found[f"dynamo_component_{name}"].samples
        assert samples, name
        assert {sample.value for sample in samples} == {0.0}


def test_a_page_has_the_ids_that_requests_come_to(worker: Worker) -> None:
    instance = re.search(r"instance ([0-9a-f]{16})", worker.process.log)
    assert instance
    (uptime,) = families(worker)["dynamo_component_uptime_seconds"].samples
    assert uptime.labels == {"worker_id": instance[1]}


def test_health_as_the_environment_wants_it(stack: Stack) -> None:
    variables = {
        "DYN_SYSTEM_STARTING_HEALTH_STATUS": "ready",
        "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["generate"]',
        "DYN_SYSTEM_HEALTH_PATH": "/custom/health",
        "DYN_SYSTEM_LIVE_PATH": "/custom/live",
    }
    with stack.run_worker(*FLAGS, system_port=0, **variables) as worker:
        answer = http(f"{worker.system_url}/custom/health")
        assert answer.status == 200  # from the first moment on
        assert answer.json()["endpoints"] == {"generate": "ready"}
        assert http(f"{worker.system_url}/custom/live").json()["status"] == "live"
        assert http(f"{worker.system_url}/health").status == 404


@pytest.mark.parametrize(
    ("flags", "component"), [((), "prefill"), (("--component", "mine"), "mine")]
)
def test_a_worker_of_the_prefill_phase_is_called_so(
    stack: Stack, flags: tuple[str, ...], component: str
) -> None:
    with stack.run_worker(*FLAGS, "--disaggregation-mode", "prefill", *flags) as worker:
        (sample,) = families(worker)["dynamo_component_inflight_requests"].samples
        assert sample.labels["dynamo_component"] == component
        (part,) = families(worker)["dynamometer_worker_info"].samples
        assert part.labels == {**sample.labels, "mode": "prefill", "node_rank": "0", "nodes": "1"}
        instance = worker.process.wait_for(r"instance ([0-9a-f]{16})", within=20)[1]
        path = stack.discovery / "instances" / f"{instance}.json"
        record = Record.from_json(path.read_bytes())
        assert (record.mode, record.component) == ("prefill", component)


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", '["other"]', '["generate"]'),
        ("DYN_SYSTEM_STARTING_HEALTH_STATUS", "up", "ready or notready"),
        ("DYN_SYSTEM_HEALTH_PATH", "health", "/custom/health"),
    ],
)
def test_a_wrong_variable_ends_it_with_a_clear_word(
    stack: Stack, tmp_path: Path, variable: str, value: str, allowed: str
) -> None:
    environment = stack.environment | {variable: value}
    command = [PYTHON, "-m", "dynamometer.sglang", *FLAGS]
    with running(command, tmp_path / "log", environment) as process:
        assert process.wait(within=20) == 2
        for part in ("error:", variable, value, allowed):
            assert part in process.log
        assert "Traceback" not in process.log
