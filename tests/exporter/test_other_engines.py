"""An exporter beside programs that are not SGLang: with multiprocess files, or with a text page."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.http.addresses import free_port
from exporting import Exporter, Page, exporter, total
from processes import PYTHON, Process, running
from stack import eventually, http

pytestmark = pytest.mark.slow

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
    """A service of two workers that write their files into `files`."""
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
    """Send requests; return the pids that answered."""
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
def test_an_odd_process_does_not_end_the_exporter(flags: tuple[str, str], tmp_path: Path) -> None:
    """Every user of this machine can start a process that looks like an engine."""
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
        name = found.process.wait_for(rf"(\S+): process {odd.pid} [(]SGLang[)]", within=10)[1]
        eventually(
            lambda: "http://" in found.health()[1]["reasons"].get(name, ""),
            within=10,
            what=f"its port is checked\n{found.log}",
        )
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
    """SGLang's first page after a restart has few counters, and later values are hardly lower."""
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
