"""`dyno observe` with a real Prometheus, a real frontend and a worker."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from observing import (
    GRAFANA,
    frontend,
    observe_once,
    observing,
    program,
    prometheus_of,
    worker,
    worker_process,
)

from dynamometer.http import addresses
from dynamometer.http.addresses import free_port
from dynamometer.observability.prometheus_api import PrometheusApi
from dynamometer.observability.questions import EXPORTER_QUESTIONS, QUESTIONS, ask
from processes import PYTHON, Process, refusing_port
from prometheus import needs_prometheus
from stack import eventually, http

NO_SD = ("--sd-url", f"http://127.0.0.1:{refusing_port()}/sd")
# Programs that hang at their start, and that fail.
HANGS = "#!/bin/sh\ntrap '' TERM\necho hanging\nsleep 300\n"
WAITS = "#!/bin/sh\nexec sleep 300\n"
FAILS = "#!/bin/sh\necho 'err=\"no space left\"'\nexit 3\n"
pytestmark = pytest.mark.slow

# A Prometheus with two workers at one address that are down, and a third one after a while.
DOWN = f"""\
#!{PYTHON}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

answers = 0

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global answers
        found = {{"alerts": []}}
        if "/targets" in self.path:
            answers += 1
            labels = {{"job": "dynamometer", "role": "worker", "instance": "h:9"}}
            found["activeTargets"] = [
                {{"labels": labels, "scrapeUrl": f"http://h:9/{{name}}", "health": "down",
                 "lastError": "refused", "lastScrape": ""}}
                for name in ("a", "b", "c")[: 2 + (answers > 4)]
            ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({{"data": found}}).encode())

(address,) = [flag for flag in sys.argv if "listen-address" in flag]
HTTPServer(("127.0.0.1", int(address.rpartition(":")[2])), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Observed:
    """A `dyno observe` beside a frontend and a worker, with a Grafana that records its start."""

    process: Process
    directory: Path
    frontend: str
    worker: str
    grafana: dict[str, Any]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    place = tmp_path_factory.mktemp("observed")
    programs = program(place / "bin", "grafana-server", GRAFANA).parent
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "RECORD": str(place / "record.json"),
        "GF_SECURITY_ADMIN_PASSWORD": "admin",
        "GF_SERVER_HTTP_ADDR": "0.0.0.0",
    }
    with frontend(place) as (url, sd_url), worker(place) as page:
        flags = ("--sd-url", sd_url, "--grafana-home", str(place))
        with observing(place / "observe", *flags, environment=environment) as process:
            process.wait_for("running until Ctrl-C", within=60)
            record = json.loads((place / "record.json").read_text())
            yield Observed(process, place / "observe", url, page, record)


@needs_prometheus
def test_one_command_shows_the_frontend_and_the_worker(observed: Observed) -> None:
    assert "2 of 2 targets are up" in observed.process.log
    assert f"worker {observed.worker} is up" in observed.process.log
    prometheus = prometheus_of(observed.process)
    assert prometheus.values("up", "role") == {"frontend": 1, "worker": 1}
    assert prometheus.values("count by (job) (up)", "job") == {"dynamometer": 2}
    assert prometheus.query("dynamometer_engine_state")


@needs_prometheus
def test_no_target_label_hides_a_label_of_a_series(observed: Observed) -> None:
    series = prometheus_of(observed.process).query('{__name__=~".+"}')
    found = [one["metric"] for one in series]
    assert len(found) > 100
    hidden = {name for one in found for name in one if name.startswith("exported_")}
    assert hidden == set()
    frontends = [one for one in found if one.get("role") == "frontend"]
    assert {one["dynamo_namespace"] for one in frontends} == {"dynamo"}


@needs_prometheus
async def test_the_first_questions_have_answers(observed: Observed) -> None:
    async with aiohttp.ClientSession() as session:
        api = PrometheusApi(session, prometheus_of(observed.process).url)
        for _ in range(2):
            await stream(observed.frontend)
            await api.wait_for_scrapes(targets=2)
        latency, throughput, requests = [await ask(api, question) for question in QUESTIONS]
    assert [line.endswith(" s") for line in latency] == [True]
    assert [line.endswith(" tokens/s") for line in throughput] == [True]
    assert "success: 2 requests" in requests
    for question in QUESTIONS:
        assert question.promql in observed.process.log


async def stream(frontend: str) -> None:
    """Send a streamed request: only these have a time to first token."""
    body = {"model": "mock", "prompt": "hi", "max_tokens": 16, "stream": True}
    answer = await asyncio.to_thread(http, f"{frontend}/v1/completions", body)
    assert answer.status == 200


@needs_prometheus
def test_everything_listens_on_loopback(observed: Observed) -> None:
    listening = [
        connection.laddr.ip
        for child in observed.process.descendants()
        for connection in child.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 2
    assert set(listening) == {"127.0.0.1"}


@needs_prometheus
def test_no_web_page_of_another_origin_reads_from_prometheus(observed: Observed) -> None:
    url = f"{prometheus_of(observed.process).url}/api/v1/query?query=up"
    for origin in ("https://evil.example", "null"):
        answer = http(url, Origin=origin)
        assert answer.status == 200
        assert "access-control-allow-origin" not in {name.lower() for name in answer.headers}


@needs_prometheus
def test_grafana_has_its_files_and_no_variable_of_the_user(observed: Observed) -> None:
    files = observed.directory / "grafana"
    assert observed.grafana["flags"] == [
        f"--homepath={observed.directory.parent}",
        f"--config={files / 'grafana.ini'}",
    ]
    variables = {k: v for k, v in observed.grafana["environment"].items() if k.startswith("GF_")}
    assert http(f"http://127.0.0.1:{variables.pop('GF_SERVER_HTTP_PORT')}/api/health").status == 200
    assert variables == {
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_PATHS_DATA": str(files / "data"),
        "GF_PATHS_LOGS": str(files / "data/log"),
        "GF_PATHS_PLUGINS": str(files / "data/plugins"),
        "GF_PATHS_PROVISIONING": str(files / "provisioning"),
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(
            files / "dashboards/dynamometer-engine.json"
        ),
    }


@needs_prometheus
def test_a_second_one_on_the_same_directory_is_refused(observed: Observed) -> None:
    done = observe_once("--directory", str(observed.directory))
    assert done.returncode == 1
    (grafana,) = re.findall(r"Grafana answers at (\S+)", observed.process.log)
    assert (
        f"another dyno observe uses {observed.directory} "
        f"(Prometheus at {prometheus_of(observed.process).url}, Grafana at {grafana}): end it first"
    ) in done.stderr


@needs_prometheus
def test_files_of_a_running_one_are_not_replaced(observed: Observed) -> None:
    path = observed.directory / "prometheus/prometheus.yml"
    before = path.read_bytes(), path.stat().st_ino
    done = observe_once("--write", str(observed.directory))
    assert done.returncode == 1
    assert f"another dyno observe uses {observed.directory} (Prometheus at " in done.stderr
    assert (path.read_bytes(), path.stat().st_ino) == before


@needs_prometheus
def test_every_printed_address_answers(observed: Observed) -> None:
    printed = set(re.findall(r"http://[\d.]+:\d+[^\s)]*", observed.process.log))
    assert any(url.endswith("/alerts") and "/api/" not in url for url in printed)
    assert len(printed) == 3
    assert {url: http(url).status for url in printed} == dict.fromkeys(printed, 200)


@needs_prometheus
def test_without_a_frontend_the_first_questions_are_about_the_engine(
    observed: Observed, tmp_path: Path
) -> None:
    # The page of a worker has the engine families of an exporter's page, too.
    with observing(tmp_path / "observe", "--exporter", observed.worker) as process:
        process.wait_for("running until Ctrl-C", within=60)
        assert "dynamo_frontend_" not in process.log
        for question in EXPORTER_QUESTIONS:
            assert question.promql in process.log
            prometheus_of(process).wait_for(question.promql)


@needs_prometheus
def test_a_killed_worker_is_a_warning_and_a_clean_end_is_not(tmp_path: Path) -> None:
    with (
        frontend(tmp_path) as (_, sd_url),
        worker_process(tmp_path, "killed.log") as (killed, killed_process),
        worker_process(tmp_path, "ended.log") as (ended, ended_process),
        observing(tmp_path / "observe", "--sd-url", sd_url) as observe,
    ):
        observe.wait_for("3 of 3 targets are up", within=60)
        ended_process.signal(signal.SIGTERM)
        killed_process.signal(signal.SIGKILL)
        observe.wait_for(f"worker {ended} is no longer a target", within=30)
        observe.wait_for(f"worker {killed} is down: .*connection refused", within=30)
        assert f"worker {ended} is down" not in observe.log


@needs_prometheus
def test_alerts_that_fire_and_are_resolved_are_logged(tmp_path: Path) -> None:
    with observing(tmp_path / "observe", *NO_SD) as process:
        prometheus_of(process)
        (prometheus,) = process.descendants()
        rule = {
            "alert": "TooLate",
            "expr": "vector(1)",
            "labels": {"severity": "page"},
            "annotations": {"summary": "Answers come late"},
        }
        rules = tmp_path / "observe/prometheus/rules/alerts.yml"
        for fires, says in ((True, "fires"), (False, "is resolved")):
            group = {"name": "g", "rules": [rule] if fires else []}
            rules.write_text(json.dumps({"groups": [group]}))  # JSON is YAML
            prometheus.send_signal(signal.SIGHUP)
            process.wait_for(rf"alert TooLate \(page\) {says}: Answers come late", within=20)
        assert process.log.count("alert TooLate") == 2


@needs_prometheus
def test_data_is_bounded(observed: Observed) -> None:
    words = [word for one in observed.process.descendants() for word in one.cmdline()]
    assert "--storage.tsdb.retention.time=604800s" in words
    assert "--storage.tsdb.retention.size=2000000000B" in words


@needs_prometheus
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_runs_after_the_end(tmp_path: Path, number: signal.Signals) -> None:
    with observing(tmp_path / "observe", *NO_SD) as process:
        url = prometheus_of(process).url
        children = process.descendants()
        process.signal(number)
        assert process.wait(within=30) == (-number if number == signal.SIGKILL else 0)
        eventually(lambda: not alive(children), within=10, what="Prometheus ended")
    # The next one starts on the same directory and port.
    port = url.rpartition(":")[2]
    with observing(tmp_path / "observe", *NO_SD, "--prometheus-port", port) as process:
        assert prometheus_of(process).url == url


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_a_signal_during_the_start_ends_all(tmp_path: Path) -> None:
    programs = program(tmp_path / "bin", "prometheus", HANGS).parent
    path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    with observing(tmp_path / "observe", *NO_SD, environment=path) as process:
        log = tmp_path / "observe/prometheus/prometheus.log"
        eventually(lambda: log.exists() and "hanging" in log.read_text(), within=20, what="started")
        children = process.descendants()
        assert len(children) == 2
        process.signal(signal.SIGINT)
        process.wait_for("SIGINT: ending", within=10)
        process.signal(signal.SIGINT)  # Prometheus ignores SIGTERM
        assert process.wait(within=10) == 0
        assert not alive(children)


@pytest.mark.parametrize("name", ["prometheus", "grafana-server"])
def test_a_program_that_fails_is_reported_with_the_end_of_its_log(
    tmp_path: Path, name: str
) -> None:
    programs = tmp_path / "bin"
    program(programs, "prometheus", WAITS)
    program(programs, name, FAILS)
    path = f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
    done = observe_once("--directory", str(tmp_path / "observe"), *NO_SD, PATH=path, within=60)
    title = name.removesuffix("-server")
    assert done.returncode == 1
    log = tmp_path / f"observe/{title}/{title}.log"
    assert f"{title.title()} ended with exit code 3; the end of {log}:" in done.stderr
    assert 'err="no space left"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_that_is_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    programs = program(tmp_path / "bin", "prometheus", FAILS).parent
    flags = "--directory", str(tmp_path / "observe"), *NO_SD
    path = f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
    log = tmp_path / "observe/prometheus/prometheus.log"
    observe_once(*flags, PATH=path, within=60)
    (tmp_path / "mine").write_text("mine")
    log.unlink()
    log.symlink_to(tmp_path / "mine")
    observe_once(*flags, PATH=path, within=60)
    assert "no space left" in log.read_text()
    assert not log.is_symlink()
    assert (tmp_path / "mine").read_text() == "mine"


@needs_prometheus
def test_a_prometheus_that_is_killed_ends_the_command(tmp_path: Path) -> None:
    with observing(tmp_path / "observe", *NO_SD) as process:
        prometheus_of(process)
        (child,) = process.descendants()
        child.kill()
        assert process.wait(within=20) == 1
        assert "Prometheus ended with signal SIGKILL" in process.log


@needs_prometheus
def test_a_frontend_that_starts_later_is_found(tmp_path: Path) -> None:
    port = free_port()
    sd_url = f"http://127.0.0.1:{port}/sd"
    with observing(tmp_path / "observe", "--sd-url", sd_url) as process:
        process.wait_for(
            rf"no server answers at {sd_url} \(Connection refused\); waiting for dyno frontend",
            within=60,
        )
        assert "running until Ctrl-C" not in process.log
        with frontend(tmp_path, "--ops-port", str(port)):
            process.wait_for(r"frontend \S+ is up", within=40)
            process.wait_for("1 of 1 targets are up", within=10)


def test_each_target_is_reported_once_while_grafana_hangs(tmp_path: Path) -> None:
    program(tmp_path / "bin", "prometheus", DOWN)
    program(tmp_path / "bin", "grafana-server", WAITS)
    path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    flags = "--exporter", "h:9"
    with observing(tmp_path / "observe", *flags, environment=path) as process:
        process.wait_for("worker h:9/c is down: refused", within=30)
        for name in "ab":
            assert process.log.count(f"worker h:9/{name} is down: refused") == 1
        assert "no longer a target" not in process.log
        assert "Grafana answers" not in process.log


@needs_prometheus
def test_a_target_that_is_down_is_named_with_its_reason(tmp_path: Path) -> None:
    address = f"127.0.0.1:{refusing_port()}"
    with observing(tmp_path / "observe", "--exporter", address) as process:
        process.wait_for(rf"exporter {address} is down: .*connection refused", within=60)
        assert "waiting for" not in process.log  # no frontend is expected


def test_without_any_program_the_files_are_written_and_the_packages_named(tmp_path: Path) -> None:
    directory = tmp_path / "observe"
    done = observe_once("--directory", str(directory), PATH=str(tmp_path))
    assert done.returncode == 1
    assert "prometheus is not installed (or not in PATH): " in done.stderr
    assert "grafana-server is not installed" in done.stderr
    assert f"wrote configuration, rules and dashboards into {directory}" in done.stderr
    assert (directory / "prometheus/prometheus.yml").exists()


def test_grafana_runs_without_prometheus(tmp_path: Path) -> None:
    programs = program(tmp_path / "bin", "grafana-server", GRAFANA).parent
    environment = {"PATH": str(programs), "RECORD": str(tmp_path / "record.json")}
    with observing(tmp_path / "observe", environment=environment) as process:
        process.wait_for("running until Ctrl-C", within=30)
        assert "prometheus is not installed" in process.log
        assert "Grafana: http://127.0.0.1:" in process.log


@needs_prometheus
def test_a_requested_port_that_is_in_use_is_an_error(tmp_path: Path) -> None:
    with addresses.listen("127.0.0.1", 0, setting="") as taken:
        port = str(taken.getsockname()[1])
        for flag in ("--prometheus-port", "--grafana-port"):
            done = observe_once("--directory", str(tmp_path / "observe"), flag, port)
            assert done.returncode == 1
            assert f"port {port} on 127.0.0.1 is already in use" in done.stderr
            assert flag in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sd-url", "127.0.0.1:8002"), "--sd-url: '127.0.0.1:8002' must be a URL"),
        (("--exporter", "localhost"), "--exporter: 'localhost' must be an address"),
        (("--exporter", "h:99999"), "--exporter: 'h:99999' must be a port"),
        (("--gpu-exporter", "http://h:1"), "--gpu-exporter: 'http://h:1' must be an address"),
        (("--retention-days", "0"), "--retention-days: '0' must be"),
        (("--retention-size", "2 parsecs"), "--retention-size: '2 parsecs' must be"),
        (("--retention-size", "2"), "--retention-size: '2' must be at least 100MB"),
        (
            ("--write", "x", "--prometheus-url", "nonsense"),
            "must be a URL that begins with http://",
        ),
        (("--prometheus-port", "-1"), "--prometheus-port: '-1' must be a port"),
        (("--scrape-interval", "0"), "--scrape-interval: '0' must be 1 to 30"),
        (("--scrape-interval", "31"), "--scrape-interval: '31' must be 1 to 30"),
        (("--write", "x", "--directory", "y"), "not allowed with"),
        (("--prometheus-url", "http://h"), "--prometheus-url is for --write"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], says: str) -> None:
    done = observe_once(*flags)
    assert done.returncode == 2
    assert says in done.stderr


def test_help_teaches() -> None:
    done = observe_once("--help")
    assert done.returncode == 0
    for words in ("dyno observe --write", "ssh -L", "default: .observe", "8002/sd", "no login"):
        assert words in done.stdout
