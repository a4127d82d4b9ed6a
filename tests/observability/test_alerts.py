"""Alerts that fire and resolve in a real Prometheus, on real faults.

The shipped rules run with every duration divided by 60, as docs/runbooks.md describes: `for: 2m`
is two seconds.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
from shipped_rules import ALERTS, RULES, scaled

from dynamometer.observability.configuration import Targets
from exporting import exporter, imitation
from prometheus import Prometheus, running_prometheus, written_configuration
from stack import Stack, Worker, eventually, http

pytestmark = [
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus"),
    pytest.mark.slow,
]

# A fault that is seen in a minute would be an hour without the scale.
SOON: Final = 60.0


def configuration(place: Path, targets: Targets) -> Mapping[str, object]:
    """Write the scaled rules, and return the shipped configuration with them."""
    for path in RULES:
        (place / path.name).write_text(scaled(path.read_text(encoding="utf-8")))
    rules = [str(place / path.name) for path in RULES]
    return written_configuration(targets) | {"rule_files": rules}


def alert(name: str, **labels: str) -> str:
    """Return the expression of a firing alert."""
    selected = {"alertname": name, "alertstate": "firing", **labels}
    return "ALERTS{" + ", ".join(f'{key}="{value}"' for key, value in selected.items()) + "}"


@dataclass(frozen=True)
class Site:
    """A frontend and a Prometheus, which the faults of all tests share."""

    stack: Stack
    frontend_url: str
    prometheus: Prometheus

    def wait_until_fires(self, name: str, **labels: str) -> None:
        self.prometheus.wait_for(alert(name, **labels), within=SOON)

    def wait_until_resolved(self, name: str, **labels: str) -> None:
        self.prometheus.wait_for(f"absent({alert(name, **labels)})", within=SOON)

    def fired(self, **labels: str) -> set[str]:
        """Return the alerts with these labels that have fired so far, without their prefix."""
        expression = f"count_over_time({alert('.*', **labels)}[10m])".replace('="', '=~"')
        names = [one["metric"]["alertname"] for one in self.prometheus.query(expression)]
        return {name.removeprefix("Dynamometer") for name in names}

    @contextlib.contextmanager
    def worker(self, model: str, *flags: str) -> Iterator[Worker]:
        """Run a worker with a simulated engine until Prometheus knows that its model is ready."""
        engine = ("--engine", "mocker", "--model", model, "--enable-metrics")
        with self.stack.run_worker(*engine, *flags, DYN_CANARY_WAIT_TIME="1") as worker:
            worker.wait_until_ready()
            known = f'dynamometer:model_ready{{model="{model}"}} == 1'
            self.prometheus.wait_for(known, within=SOON)
            yield worker

    @contextlib.contextmanager
    def traffic(self, model: str) -> Iterator[None]:
        """Send ten requests a second through the frontend, whatever their result is."""
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(0.1):
                body = {"model": model, "prompt": "x", "max_tokens": 1}
                http(f"{self.frontend_url}/v1/completions", body)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


# Faults. Each function returns when its alerts have fired, and have resolved after the repair.


def killed_worker(site: Site) -> None:
    model = "killed"
    with site.traffic(model):
        with site.worker(model) as worker:
            worker.process.signal(signal.SIGKILL)
            site.wait_until_fires("DynamometerModelNotReady", model=model)
            site.wait_until_fires("DynamometerErrorBudgetBurn", model=model)
        with site.worker(model):
            site.wait_until_resolved("DynamometerModelNotReady", model=model)
            site.wait_until_resolved("DynamometerErrorBudgetBurn", model=model)
    assert site.fired(model=model) == {"ModelNotReady", "ErrorBudgetBurn"}


def frozen_engine(site: Site) -> None:
    with site.worker("frozen", "--hang-timeout", "2") as worker:
        with stopped(worker.engine):
            site.wait_until_fires("DynamometerEngineUnresponsive", model="frozen")
            site.wait_until_fires("DynamometerModelNotReady", model="frozen")
        site.wait_until_resolved("DynamometerEngineUnresponsive", model="frozen")
        site.wait_until_resolved("DynamometerModelNotReady", model="frozen")
    assert site.fired(model="frozen") == {"EngineUnresponsive", "ModelNotReady"}


def frozen_engine_beside_an_exporter(site: Site) -> None:
    """The page of an exporter is enough: neither a frontend nor a worker knows the model."""
    directory = site.stack.directory
    with (
        imitation(directory) as engine,
        exporter(directory, "--pid", f"a={engine.pid}", "--health-interval", "0.1") as found,
    ):
        found.wait_until_ready("a")
        site.prometheus.wait_for('dynamometer:model_ready{model="m"} == 1', within=SOON)
        engine.set_status(503)
        site.wait_until_fires("DynamometerEngineUnresponsive", model="m", engine="a")
        site.wait_until_fires("DynamometerModelNotReady", model="m")
        engine.set_status(200)
        site.wait_until_resolved("DynamometerEngineUnresponsive", model="m", engine="a")
        site.wait_until_resolved("DynamometerModelNotReady", model="m")


def stopped_worker(site: Site) -> None:
    """The frontend takes the worker for ready: no request that it sends there is answered."""
    with site.worker("stopped") as worker:
        instance = worker.system_url.removeprefix("http://")
        with site.traffic("stopped"):
            with stopped(psutil.Process(worker.process.pid)):
                site.wait_until_fires("DynamometerTargetDown", instance=instance)
                site.wait_until_fires("DynamometerModelNotReady", model="stopped")
            site.wait_until_resolved("DynamometerTargetDown", instance=instance)
            site.wait_until_resolved("DynamometerModelNotReady", model="stopped")
    assert site.fired(instance=instance) == {"TargetDown"}
    assert site.fired(model="stopped") == {"ModelNotReady"}


def dying_engine(site: Site) -> None:
    with site.worker("dying") as worker:
        for _ in range(3):
            worker.engine.kill()
            eventually(lambda: not worker.ready(), within=5, what="the end of the engine")
            worker.wait_until_ready()
        site.wait_until_fires("DynamometerRestartLoop", model="dying")
        site.wait_until_resolved("DynamometerRestartLoop", model="dying")
    assert "RestartLoop" in site.fired(model="dying") <= {"RestartLoop", "ModelNotReady"}


def missing_side(site: Site) -> None:
    """Start a prefill worker alone, and its decode worker after the alert."""
    model = "sided"
    engine = ("--engine", "mocker", "--model", model, "--enable-metrics")
    with site.stack.run_worker(*engine, "--disaggregation-mode", "prefill") as prefill:
        prefill.wait_until_ready()
        site.wait_until_fires("DynamometerSideMissing", model=model, mode="prefill")
        with site.stack.run_worker(*engine, "--disaggregation-mode", "decode") as decode:
            decode.wait_until_ready()
            site.wait_until_resolved("DynamometerSideMissing", model=model)
            site.prometheus.wait_for(f'dynamometer:model_ready{{model="{model}"}} == 1')
    assert site.fired(model=model) == {"SideMissing"}


def calm_worker(site: Site) -> None:
    """Serve requests while all faults happen."""
    with site.worker("calm") as worker, site.traffic("calm"):
        time.sleep(20)
        assert not site.fired(model="calm")
        assert not site.fired(instance=worker.system_url.removeprefix("http://"))


FAULTS = (
    killed_worker,
    frozen_engine,
    frozen_engine_beside_an_exporter,
    stopped_worker,
    dying_engine,
    missing_side,
    calm_worker,
)


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mapping[Callable[[Site], None], Future[None]]]:
    """Cause all faults at once, and return their results when all are repaired."""
    place = tmp_path_factory.mktemp("alerts")
    stack = Stack(place, place, place / "discovery")
    with stack.run_frontend("--ops-port", "0") as (frontend, url):
        operations = frontend.wait_for(r"ops routes at (http://\S+): ", within=20)[1]
        settings = configuration(place, Targets(sd_url=f"{operations}/sd"))
        with (
            running_prometheus(settings, place / "prometheus") as prometheus,
            ThreadPoolExecutor(len(FAULTS)) as executor,
        ):
            site = Site(stack, url, prometheus)
            yield {fault: executor.submit(fault, site) for fault in FAULTS}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_alerts_fire_and_resolve(
    fault: Callable[[Site], None], results: Mapping[Callable[[Site], None], Future[None]]
) -> None:
    results[fault].result(timeout=150)


@pytest.mark.engine
def test_a_scheduler_that_hangs_is_a_ticket(stack: Stack, tmp_path: Path) -> None:
    """The real engine: one rule is enough to see that its page has what the rules need."""
    assert stack.worker is not None
    (scheduler,) = [
        process
        for process in stack.worker.process.descendants()
        if process.cmdline() and "scheduler" in process.cmdline()[0]
    ]
    instance = stack.worker.system_url.removeprefix("http://")
    settings = configuration(tmp_path, Targets(sd_url="", exporters=[instance]))
    hangs, model = "DynamometerEngineUnresponsive", str(stack.model)
    with running_prometheus(settings, tmp_path / "prometheus") as prometheus:
        site = Site(stack, stack.frontend_url, prometheus)
        prometheus.wait_for(f'dynamometer:model_ready{{model="{model}"}} == 1')
        with stopped(scheduler):
            site.wait_until_fires(hangs, instance=instance)
            site.wait_until_fires("DynamometerModelNotReady", model=model)
        site.wait_until_resolved(hangs, instance=instance)
        assert site.fired() == {"EngineUnresponsive", "ModelNotReady"}
        groups = prometheus.ask("rules")["groups"]
        health = {rule["health"] for group in groups for rule in group["rules"]}
        assert health == {"ok"}
        assert {rule["name"] for group in groups for rule in group["rules"]} >= set(ALERTS)
    stack.worker.wait_until_ready()
