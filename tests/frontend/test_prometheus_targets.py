"""A real Prometheus finds real processes at `/sd`, and shows which of them are down."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT
from processes import PYTHON, Process, running
from prometheus import Prometheus, needs_prometheus, running_prometheus
from stack import Stack, Worker, eventually, http, ops_url

pytestmark = [needs_prometheus, pytest.mark.slow]

FLAGS = ("--engine", "mocker", "--model", "mock", "--enable-metrics", "--processes", "1")
HANGS = {"DYN_CANARY_WAIT_TIME": "0.2", "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "0.3"}


def configuration(url: str) -> Mapping[str, Any]:
    """Return the documented configuration for a frontend's ops listener, with short intervals."""
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    block = re.search(r"## Targets\n.*?```yaml\n(.*?)```", page, re.DOTALL)
    assert block is not None
    text = block[1].replace("http://127.0.0.1:8002", url)
    found: dict[str, Any] = yaml.safe_load(
        text.replace("refresh_interval: 5s", "refresh_interval: 1s")
    )
    return {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}} | found


@dataclass
class Site:
    """A frontend, an exporter, workers by the fate that awaits them, and Prometheus."""

    stack: Stack
    frontend: Process
    frontend_url: str
    exporter_url: str
    prometheus: Prometheus
    workers: Mapping[str, Worker]
    start_worker: Callable[..., Worker]

    @property
    def groups(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of each target at `/sd`."""
        return groups(self.frontend)

    def wait_until_up_is(self, value: float | None, url: str) -> None:
        """Wait until `up` of the target is a value, or missing."""
        what = f"up == {value} of {url}"
        eventually(
            lambda: self.prometheus.values("up").get(target(url)) == value, within=20, what=what
        )


def target(url: str) -> str:
    return url.removeprefix("http://")


def groups(frontend: Process) -> Mapping[str, Mapping[str, str]]:
    found = json.loads(http(f"{ops_url(frontend)}/sd").body)
    labels = {group["targets"][0]: group["labels"] for group in found}
    assert len(labels) == len(found)  # no address twice
    return labels


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    stack = Stack(directory, Path("mock"), directory / "discovery")
    with ExitStack() as entered:

        def start_worker(*flags: str, **variables: Any) -> Worker:
            return entered.enter_context(stack.run_worker(*FLAGS, *flags, **variables))

        frontend, url = entered.enter_context(stack.run_frontend())
        environment = stack.environment | {"DYN_SYSTEM_PORT": "0"}
        command = [PYTHON, "-m", "dynamometer.cli", "exporter", "--multiproc-dir", str(directory)]
        exporter = entered.enter_context(running(command, directory / "exporter", environment))
        exporter_url = exporter.wait_for(r"metrics and health: (\S+)/metrics", within=20)[1]
        workers = {
            "ends": start_worker(),
            "its engine freezes": start_worker("--hang-timeout", "1", **HANGS),
            "freezes": start_worker(),
            "is killed": start_worker(),
            "gives its engine up": start_worker("--restart-limit", "0"),
        }
        found = Site(
            stack, frontend, url, exporter_url,
            entered.enter_context(
                running_prometheus(configuration(ops_url(frontend)), directory / "prometheus")
            ),
            workers, start_worker,
        )  # fmt: skip
        for page in (url, exporter_url, *(worker.system_url for worker in workers.values())):
            found.wait_until_up_is(1, page)
        yield found


def test_a_target_has_its_role_and_a_frontend_its_namespace(site: Site) -> None:
    up = {one["metric"]["instance"]: one["metric"] for one in site.prometheus.query("up")}
    for url, role, namespace in [
        (site.frontend_url, "frontend", "dynamo"),
        (site.exporter_url, "exporter", None),
        (site.workers["ends"].system_url, "worker", None),
    ]:
        labels = up[target(url)]
        assert (labels["role"], labels.get("dynamo_namespace")) == (role, namespace)


def test_a_worker_whose_engine_is_frozen_is_up_and_unresponsive(site: Site) -> None:
    worker = site.workers["its engine freezes"].wait_until_ready()
    address = target(worker.system_url)
    engine = worker.engine
    engine.suspend()
    try:
        state = f'dynamometer_engine_state{{instance="{address}",state="unresponsive"}} == 1'
        site.prometheus.wait_for(state)
        site.wait_until_up_is(1, worker.system_url)
    finally:
        engine.resume()


def test_a_frozen_worker_process_is_down(site: Site) -> None:
    worker = site.workers["freezes"]
    worker.process.signal(signal.SIGSTOP)
    try:
        site.wait_until_up_is(0, worker.system_url)
    finally:
        worker.process.signal(signal.SIGCONT)
    site.wait_until_up_is(1, worker.system_url)


def test_a_worker_that_gave_its_engine_up_is_down(site: Site) -> None:
    worker = site.workers["gives its engine up"].wait_until_ready()
    worker.engine.kill()
    assert worker.process.wait(within=20) == 1
    assert target(worker.system_url) in site.groups
    site.wait_until_up_is(0, worker.system_url)


def test_a_killed_worker_process_is_down_until_another_one_has_its_address(site: Site) -> None:
    worker = site.workers["is killed"]
    address = target(worker.system_url)
    before = site.groups[address]
    worker.process.signal(signal.SIGKILL)
    worker.process.wait(within=5)
    assert site.groups[address] == before
    site.wait_until_up_is(0, worker.system_url)
    with site.stack.run_frontend() as (later_frontend, _):
        assert groups(later_frontend)[address] == before
    site.start_worker(system_port=int(address.rpartition(":")[2]))
    assert site.groups[address] != before
    site.wait_until_up_is(1, worker.system_url)


def test_a_worker_that_ended_cleanly_is_gone(site: Site) -> None:
    worker = site.workers["ends"]
    worker.process.signal(signal.SIGTERM)
    assert worker.process.wait(within=20) == 0
    assert target(worker.system_url) not in site.groups
    site.wait_until_up_is(None, worker.system_url)


def check_labels(prometheus: Prometheus) -> None:
    """Check that Prometheus has renamed no label of a page, such as to `exported_role`."""
    labels = set(prometheus.ask("labels"))
    assert labels > {"instance", "job", "role", "dynamo_namespace", "worker_id", "model_name"}
    assert not {label for label in labels if label.startswith("exported_")}


def test_no_label_of_a_target_is_a_label_of_a_page(site: Site) -> None:
    check_labels(site.prometheus)


@pytest.mark.engine
def test_no_label_of_a_target_is_a_label_of_the_real_engine(stack: Stack, tmp_path: Path) -> None:
    assert stack.frontend is not None
    settings = configuration(ops_url(stack.frontend))
    with running_prometheus(settings, tmp_path / "prometheus") as prometheus:
        prometheus.wait_for('count(up{role="worker"} == 1) == 1 and count(up == 1) == 2')
        assert prometheus.query("sglang:num_running_reqs")
        check_labels(prometheus)
