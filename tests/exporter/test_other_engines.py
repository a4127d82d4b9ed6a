"""Whatever writes prometheus_client's multiprocess files, or serves a text page."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.errors import SettingsError
from dynamometer.exporter import procfs, targets
from dynamometer.exporter.observed_engine import EngineOptions, ObservedEngine
from dynamometer.exporter.targets import Target
from dynamometer.http.addresses import free_port
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.runtime.record import State
from exporting import Exporter, Page, exporter, total
from processes import PYTHON, Process, running
from stack import eventually, http

ROOT = Path(__file__).parent.parent.parent
SERVICE = """
import os
from prometheus_client import Counter, Gauge

requests = Counter("shop_requests", "What was asked for.", ["path"])
busy = Gauge("shop_busy", "Whether it is at work.", multiprocess_mode="all")

def app(environ, start_response):
    requests.labels("/").inc()
    busy.set(1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    """A service of two workers, which write their files into `files`."""
    (tmp_path / "shop.py").write_text(SERVICE)
    (tmp_path / "files").mkdir()
    port = free_port()
    command = [PYTHON, "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}"]
    command += ["--chdir", str(tmp_path), "--worker-tmp-dir", str(tmp_path), "shop:app"]
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "files")}
    with running(command, tmp_path / "gunicorn.log", variables) as process:
        process.wait_for("Booting worker with pid(?s:.*)Booting worker with pid", within=20)
        yield process, f"http://127.0.0.1:{port}/"


def ask(url: str, times: int) -> set[int]:
    """The pids that answered."""
    return {int(http(url).body) for _ in range(times)}


def busy(found: Exporter) -> set[str]:
    return {
        sample.labels["pid"]
        for family in parse(found.page())
        for sample in family.samples
        if sample.name == "shop_busy"
    }


@pytest.mark.parametrize("given", ["directory", "pid"])
def test_a_gunicorn_service(given: str, gunicorn: tuple[Process, str], tmp_path: Path) -> None:
    process, url = gunicorn
    flags = {
        "directory": ("--multiproc-dir", f"shop={tmp_path / 'files'}"),
        "pid": ("--pid", f"shop={process.pid}"),
    }[given]
    pids = ask(url, 10)
    with exporter(tmp_path, *flags, "--prefix", "shop_", "--health-path", "") as found:
        found.wait_until_ready("shop")
        assert total(found.page(), "shop_requests_total") == 10
        assert busy(found) >= set(map(str, pids))
        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: str(victim) not in busy(found), within=5, what=f"gone\n{found.log}")
        assert total(found.page(), "shop_requests_total") == 10
        ask(url, 5)  # by the worker that took its place too
        assert total(found.page(), "shop_requests_total") == 15
        assert found.ready("shop")
        process.end()
        eventually(lambda: not found.ready("shop"), within=3, what=f"ended\n{found.log}")
        assert "ended" in found.health()[1]["reasons"]["shop"]
        assert total(found.page(), "shop_requests_total") == 15
        assert busy(found) == set()


def test_each_process_of_a_container_sees_the_same_directory_once(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SERVICE)
    (tmp_path / "files").mkdir()
    port = free_port()
    command = ["unshare", "--mount", PYTHON, "-m", "gunicorn", "--workers", "3"]
    command += ["--bind", f"127.0.0.1:{port}", "--chdir", str(tmp_path), "shop:app"]
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "files")}
    with running(command, tmp_path / "gunicorn.log", variables) as process:
        process.wait_for("Booting worker with pid(?s:.*)Booting worker with pid", within=20)
        ask(f"http://127.0.0.1:{port}/", 10)
        flags = ("--pid", f"shop={process.pid}", "--prefix", "shop_", "--health-path", "")
        with exporter(tmp_path, *flags) as found:
            found.wait_until_ready("shop")
            assert f"/proc/{process.pid}/root{tmp_path}" in found.log
            assert total(found.page(), "shop_requests_total") == 10


@pytest.mark.parametrize(
    "flags", [("--port", "99999"), ("--host", "a" * 70 + ".x"), ("--config", "pipe")]
)
def test_an_odd_process_costs_nobody_his_page(flags: tuple[str, str], tmp_path: Path) -> None:
    """Whoever may start processes here can start one that looks like an engine."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang/__init__.py").touch()
    (tmp_path / "sglang/launch_server.py").write_text("import time\ntime.sleep(60)\n")
    os.mkfifo(tmp_path / "pipe")
    command = [
        "bash",
        "-c",
        f"cd {tmp_path} && exec {PYTHON} -m sglang.launch_server {' '.join(flags)}",
    ]
    with (
        running(command, tmp_path / "odd.log", {"PYTHONPATH": str(tmp_path)}) as odd,
        exporter(tmp_path) as found,
    ):
        found.process.wait_for(f"process {odd.pid} [(]SGLang[)]", within=10)
        time.sleep(3)  # it is looked at each second
        assert found.process.running
        assert found.health()[0] == 503
        assert "Traceback" not in found.log


def page_of(requests: int) -> str:
    return (
        f"# TYPE vllm:requests_total counter\nvllm:requests_total {requests}\n"
        f'# TYPE lmcache:hits_total counter\nlmcache:hits_total{{tier="cpu"}} {requests}\n'
        "# TYPE vllm:running gauge\nvllm:running 1\n"
        "# TYPE python_info gauge\npython_info 1\n"
    )


@pytest.mark.parametrize("path", ["", "/stats/prometheus"])
def test_a_text_page_of_other_names_goes_on_over_a_restart(path: str, tmp_path: Path) -> None:
    port = free_port()
    paths = [path or "/metrics"]
    server = Page(port, page_of(7), paths=paths)
    flags = ("--engine-url", f"http://127.0.0.1:{port}{path}", "--model", "m")
    with exporter(tmp_path, *flags, "--prefix", "vllm:", "--prefix", "lmcache:") as found:
        found.wait_until_ready("engine")
        eventually(lambda: "vllm:running" in found.page(), within=5, what="the page")
        assert total(found.page(), "lmcache:hits_total") == 7
        assert 'vllm:running{dynamo_component="backend"' in found.page()
        assert 'model="m"' in found.page()
        assert "python_info" not in found.page()
        server.end()
        eventually(lambda: not found.ready("engine"), within=3, what="ended")
        assert found.health()[0] == 503
        eventually(lambda: "vllm:running" not in found.page(), within=6, what="gauges gone")
        assert total(found.page(), "vllm:requests_total") == 7
        server = Page(port, page_of(2), paths=paths)
        eventually(
            lambda: total(found.page(), "vllm:requests_total") == 9, within=8, what="it goes on"
        )
        assert total(found.page(), "lmcache:hits_total") == 9
        server.end()


def test_an_engine_that_counted_little_before_its_restart_goes_on(tmp_path: Path) -> None:
    """As SGLang does: its first page has few counters, and later values are hardly lower."""
    port = free_port()
    starts = "# TYPE vllm:starts_total counter\nvllm:starts_total 1\n"
    server = Page(port, starts + page_of(3))
    flags = ("--prefix", "vllm:", "--prefix", "lmcache:")
    with exporter(tmp_path, "--engine-url", f"http://127.0.0.1:{port}", *flags) as found:
        found.wait_until_ready("engine")
        eventually(lambda: "vllm:running" in found.page(), within=8, what="the page")
        server.end()
        eventually(lambda: "vllm:running" not in found.page(), within=8, what="ended")
        server = Page(port, starts)
        eventually(
            lambda: total(found.page(), "vllm:starts_total") == 2, within=8, what="it is back"
        )
        assert total(found.page(), "vllm:requests_total") == 3
        server.text = starts + page_of(2)
        eventually(lambda: "vllm:running" in found.page(), within=8, what="all of it")
        assert total(found.page(), "vllm:requests_total") == 5
        assert total(found.page(), "lmcache:hits_total") == 5
        server.end()


def test_two_engines_on_one_page(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    servers = [Page(port, page_of(number)) for port, number in zip(ports, (3, 4), strict=True)]
    flags = [
        word
        for name, port in zip("ab", ports, strict=True)
        for word in ("--engine-url", f"{name}=http://127.0.0.1:{port}")
    ]
    with exporter(tmp_path, *flags, "--prefix", "vllm:") as found:
        found.wait_until_ready("a")
        found.wait_until_ready("b")

        def counted() -> dict[str, float]:
            return {
                s.labels["engine"]: s.value
                for f in parse(found.page())
                for s in f.samples
                if s.name == "vllm:requests_total"
            }

        eventually(lambda: counted() == {"a": 3, "b": 4}, within=8, what=f"both: {counted()}")
        assert found.health()[0] == 200
        servers[0].end()
        eventually(lambda: not found.ready("a"), within=3, what="one ended")
        assert found.ready("b")
        assert found.health()[0] == 503
        servers[1].end()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with exporter(tmp_path, "--multiproc-dir", str(tmp_path / "not there yet")) as found:
        assert found.health()[0] == 503
        found.process.signal(signal.SIGINT)
        assert found.process.wait(within=5) == 0
        assert "Traceback" not in found.log


def test_a_user_with_a_number_alone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert procfs.own_user() == f"user {os.geteuid()}"


async def test_an_engine_whose_name_goes_with_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a container's does. Its gauges leave, and come back with it."""
    port = free_port()
    server = Page(port, page_of(7))
    real = asyncio.open_connection
    known = True

    async def open_connection(host: str, port: int) -> object:
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await real(host, port)

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    page = MetricsPage(InstrumentRegistry())
    options = EngineOptions(
        prefixes=("vllm:",), max_series=100, health_path="", health_interval=1, health_deadline=1
    )

    def shown() -> bytes:
        page.refresh()
        return page.render()

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.1)

    async with aiohttp.ClientSession() as session:
        target = Target(name="e", url=f"http://127.0.0.1:{port}")
        engine = ObservedEngine(target, options, page, session)
        watching = asyncio.create_task(engine.observe())
        await until(lambda: b"vllm:running" in shown())
        known = False
        await until(lambda: b"vllm:running" not in shown())
        assert engine.state is State.FAILED
        assert "not known" in engine.reason
        assert b"vllm:requests_total 7" in shown()
        known = True
        await until(lambda: b"vllm:running" in shown())
        assert b"vllm:requests_total 7" in shown()
        watching.cancel()
    server.end()


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamometer", "exporter", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for flag in ("--multiproc-dir", "--engine-url", "--pid", "--prefix", "--system-port"):
        assert re.search(rf"^  {flag}", done.stdout, re.MULTILINE)
    assert "examples:" in done.stdout


@pytest.mark.parametrize("waited_for", [{}, {"DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["a"]'}])
@pytest.mark.parametrize(("start", "status"), [("ready", 200), ("notready", 503)])
def test_an_engine_that_starts_is_called_what_the_environment_says(
    start: str, status: int, waited_for: dict[str, str], tmp_path: Path
) -> None:
    url = f"a=http://127.0.0.1:{free_port()}"
    says = {"DYN_SYSTEM_STARTING_HEALTH_STATUS": start, **waited_for}
    with exporter(tmp_path, "--engine-url", url, **says) as found:
        answer = http(f"{found.url}/health")
        assert (answer.status, answer.json()["status"]) == (status, start)
        assert set(found.health()[1]["endpoints"].values()) <= {start}


@pytest.mark.parametrize("pid", ["", "-1", "1.0", "4_7", "\uff14\uff17", "9" * 20])
def test_a_pid_is_ascii_digits(pid: str) -> None:
    with pytest.raises(SettingsError, match=r"--pid .*: must be the number of a process"):
        targets.select(targets.TargetFlags(pids=[targets.NamedValue("", pid)]))


def assert_join_of_the_docs(page: str, expected: dict[str, float], directory: Path) -> None:
    """Prometheus gives each series the name of its engine, by docs/two-minutes.md's expression."""
    text = (ROOT / "docs/two-minutes.md").read_text(encoding="utf-8")
    (expression,) = re.findall(r"^vllm:.* on \(worker_id\) .*$", text, re.MULTILINE)
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    wanted = ("vllm:num", "dynamometer_engine_up")
    series = [{"series": key, "values": value} for key, _, value in lines if key.startswith(wanted)]
    labels = {key: labels_of(key) for key, _, _ in lines if key.startswith("vllm:num")}
    names = {
        labels_of(key)["worker_id"]: labels_of(key)["engine"]
        for key, _, _ in lines
        if key.startswith("dynamometer_engine_up")
    }
    samples = []
    for own in labels.values():
        own["engine"] = names[own["worker_id"]]
        text = ",".join(f'{name}="{value}"' for name, value in own.items())
        samples.append({"labels": f"{{{text}}}", "value": expected[own["engine"]]})
    test = {"expr": expression, "eval_time": "0m", "exp_samples": samples}
    rules = directory / "rules.yml"
    rules.write_text(
        json.dumps(
            {
                "rule_files": [],
                "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [test]}],
            }
        ),
        encoding="utf-8",
    )
    subprocess.run(["promtool", "test", "rules", str(rules)], check=True)


def labels_of(series: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', series))


def vllm_page(running: int) -> str:
    name = "vllm:num_requests_running"
    return f'# TYPE {name} gauge\n{name}{{engine="0",model_name="m"}} {running}\n'


@pytest.mark.parametrize("labels", [(), ("--no-runtime-labels",)])
def test_engines_whose_series_have_a_label_engine_are_told_apart_by_worker_id(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    """As vLLM's have: `dynamometer_engine_up * on (worker_id) group_right ...` joins."""
    servers = [Page(0, vllm_page(running)) for running in (3, 4)]
    flags = [
        word
        for name, server in zip("ab", servers, strict=True)
        for word in ("--engine-url", f"{name}=http://127.0.0.1:{server.server_address[1]}")
    ]
    with exporter(tmp_path, *flags, "--prefix", "vllm:", *labels) as found:
        found.wait_until_ready("a").wait_until_ready("b")

        def joined() -> dict[str, float]:
            """What each engine has running, by the name that its `up` has."""
            samples = [sample for family in parse(found.page()) for sample in family.samples]
            up = {
                sample.labels["worker_id"]: sample.labels["engine"]
                for sample in samples
                if sample.name == "dynamometer_engine_up"
            }
            assert len(up) == 2
            return {
                up[sample.labels["worker_id"]]: sample.value
                for sample in samples
                if sample.name == "vllm:num_requests_running"
            }

        eventually(lambda: joined() == {"a": 3, "b": 4}, within=8, what=f"{found.page()}")
        own = [line for line in found.page().splitlines() if line.startswith("vllm:num")]
        assert all('engine="0"' in line for line in own)
        assert_join_of_the_docs(found.page(), {"a": 3, "b": 4}, tmp_path)
    for server in servers:
        server.end()


def test_one_engine_without_runtime_labels_has_its_own_labels_alone(tmp_path: Path) -> None:
    server = Page(0, vllm_page(3))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    flags = ("--engine-url", url, "--prefix", "vllm:", "--no-runtime-labels")
    with exporter(tmp_path, *flags) as found:
        line = 'vllm:num_requests_running{engine="0",model_name="m"} 3'
        eventually(lambda: line in found.page(), within=8, what=f"{found.page()}")
    server.end()
