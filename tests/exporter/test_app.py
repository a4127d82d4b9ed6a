"""Several engines on one page, the labels of their series, and the answers of /health."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.http.addresses import free_port
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.record import State
from exporting import Exporter, Page, exporter
from stack import eventually, http

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
ROOT = Path(__file__).parent.parent.parent


def page_of(requests: int) -> str:
    return f"# TYPE vllm:requests_total counter\nvllm:requests_total {requests}\n"


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


def test_an_exporter_that_ends_keeps_its_page_for_the_drain_delay(tmp_path: Path) -> None:
    port = free_port()
    server = Page(port, page_of(3))
    flags = ("--engine-url", f"a=http://127.0.0.1:{port}", "--prefix", "vllm:")
    with exporter(tmp_path, *flags, "--drain-delay", "60") as found:
        found.wait_until_ready("a")
        eventually(lambda: found.health()[0] == 200, within=5, what="healthy")
        eventually(lambda: "vllm:requests_total" in found.page(), within=5, what="fetched")
        found.process.signal(signal.SIGTERM)
        eventually(lambda: found.health()[0] == 503, within=1, what="health is 503")
        discovery = FileDiscovery(tmp_path / "discovery")
        (record,) = asyncio.run(discovery.records())
        assert record.state is State.DRAINING
        assert http(f"{found.url}/live").status == 200
        assert "vllm:requests_total" in found.page()
        found.process.signal(signal.SIGTERM)
        assert found.process.wait(within=5) == 0
        assert not asyncio.run(discovery.records())
    server.end()


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


def health(found: Exporter) -> dict[str, Any]:
    return cast(dict[str, Any], http(f"{found.url}/health").json())


def test_health_has_the_report_of_each_engine_and_of_the_one_that_decides(tmp_path: Path) -> None:
    servers = [Page(0, vllm_page(1), paths=("/health", "/metrics")) for _ in "ab"]
    flags = [
        word
        for name, server in zip("ab", servers, strict=True)
        for word in ("--engine-url", f"{name}=http://127.0.0.1:{server.server_address[1]}")
    ]
    with exporter(tmp_path, *flags) as found:
        found.wait_until_ready("a").wait_until_ready("b")
        body = health(found)
        assert body["state"] == "ready"
        assert body["engines"].keys() == {"a", "b"}
        servers[1].end()
        eventually(lambda: health(found)["state"] == "failed", within=8, what=found.log)
        body = health(found)
        assert "no process listens" in body["reason"]
        assert body["last_exit"]["cause"] == "exit"
        assert body["last_exit"]["code"] is None
        shown = {"a": "ready", "b": "failed"}
        assert {name: report["state"] for name, report in body["engines"].items()} == shown
        page = found.page()
        up = dict(re.findall(r'dynamometer_engine_up{engine="(.)",worker_id="(\w+)"}', page))
        for name, state in shown.items():
            pattern = rf'dynamometer_engine_state{{[^}}]*state="{state}",[^}}]*{up[name]}"}} 1.0'
            assert re.search(pattern, page), page
        assert page.count("dynamometer_engine_restarts_total{") == 8
    servers[0].end()


def test_health_of_an_exporter_without_engines_has_the_same_members(tmp_path: Path) -> None:
    discovery = str(Path("/tmp") / f"dyno-test-{os.getpid()}")
    with exporter(tmp_path, before=NOBODY, DYN_FILE_KV=discovery) as found:
        body = health(found)
        assert body["engines"] == {}
        assert (body["state"], body["last_exit"]) == ("starting", None)
        assert "has no process" in body["reason"]


def assert_join_of_the_docs(page: str, expected: dict[str, float], directory: Path) -> None:
    """Check that the expression of docs/two-minutes.md adds the engine's name to each series."""
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
    """vLLM has this label; `dynamometer_engine_up * on (worker_id) group_right ...` joins."""
    servers = [Page(0, vllm_page(running)) for running in (3, 4)]
    flags = [
        word
        for name, server in zip("ab", servers, strict=True)
        for word in ("--engine-url", f"{name}=http://127.0.0.1:{server.server_address[1]}")
    ]
    with exporter(tmp_path, *flags, "--prefix", "vllm:", *labels) as found:
        found.wait_until_ready("a").wait_until_ready("b")

        def joined() -> dict[str, float]:
            """Return the running requests by the engine's name in `dynamometer_engine_up`."""
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
