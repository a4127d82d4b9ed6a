"""The simulated engine alone, and as the engine of a worker."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from processes import PYTHON, Process, running
from stack import Stack, eventually, http

SERIES, PROCESSES = 1200, 3


@pytest.fixture(scope="module")
def mocker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str]]:
    directory = tmp_path_factory.mktemp("mocker")
    (directory / "multiproc").mkdir()
    command = [PYTHON, "-m", "dynamometer.mocker", "--port", "0", "--model", "mock"]
    command += ["--series", str(SERIES), "--processes", str(PROCESSES)]
    command += ["--change", "0.5", "--interval", "0.05", "--tokens-per-second", "1000"]
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(directory / "multiproc")}
    with running(command, directory / "log", environment) as process:
        url = process.wait_for(r"serving mock at (\S+);", within=20)[1]
        eventually(
            lambda: len(list((directory / "multiproc").glob("histogram_*.db"))) > PROCESSES,
            within=20,
            what="every process writes",
        )
        yield process, url


def test_it_serves_openais_api(mocker: tuple[Process, str]) -> None:
    with openai.OpenAI(base_url=f"{mocker[1]}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="mock", messages=[{"role": "user", "content": "hi"}], max_tokens=7
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 7
        assert answer.system_fingerprint == "mocker"
        chunks = client.completions.create(
            model="mock",
            prompt="hi",
            max_tokens=7,
            stream=True,
            stream_options={"include_usage": True},
        )
        found = list(chunks)
        assert sum(len(chunk.choices) for chunk in found) == 7
        assert found[-1].usage is not None
        assert found[-1].usage.completion_tokens == 7
        assert [model.id for model in client.models.list()] == ["mock"]


def test_it_has_the_routes_that_a_worker_needs(mocker: tuple[Process, str]) -> None:
    url = mocker[1]
    assert http(f"{url}/health_generate").status == 200
    assert http(f"{url}/server_info").json()["page_size"] == 1
    assert http(f"{url}/get_model_info").json()["served_model_name"] == "mock"
    assert http(f"{url}/v1/chat/completions", b"{").status == 400
    assert http(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 32769}).status == 400


def test_its_page_has_the_requested_size_and_changes(mocker: tuple[Process, str]) -> None:
    def page() -> dict[str, float]:
        text = http(f"{mocker[1]}/metrics").body.decode()
        return {
            f"{s.name}{s.labels}": s.value
            for family in parse(text)
            for s in family.samples
            if "tp_rank" in s.labels
        }

    eventually(lambda: len(page()) >= 0.9 * SERIES, within=20, what="all series are written")
    first = page()
    assert len(first) <= 1.1 * SERIES
    eventually(
        lambda: any(page()[key] != value for key, value in first.items()),
        within=10,
        what="values change",
    )


def test_every_line_shows_that_it_is_simulated(mocker: tuple[Process, str]) -> None:
    process, url = mocker
    for line in process.log.splitlines():
        assert line.startswith("[simulated engine] ")
    for line in http(f"{url}/metrics").body.decode().splitlines():
        assert 'engine_type="mocker"' in line or line.startswith("# ")
        assert not line.startswith("# HELP") or "Simulated: " in line or "Multiprocess" in line


@pytest.mark.parametrize(("mode", "tokens"), [("prefill", 1), ("decode", 5)])
def test_one_side_of_a_pair_demands_a_room(tmp_path: Path, mode: str, tokens: int) -> None:
    command = [PYTHON, "-m", "dynamometer.mocker", "--port", "0", "--disaggregation-mode", mode]
    with running(command, tmp_path / "log", {}) as process:
        url = process.wait_for(r"serving mock at (\S+);", within=20)[1]
        body = {"prompt": "hi", "max_tokens": 5}
        refused = http(f"{url}/v1/completions", body)
        assert refused.status == 400
        assert b"without bootstrap room" in refused.body
        answer = http(f"{url}/v1/completions", body | {"bootstrap_room": 1 << 40})
        assert json.loads(answer.body)["usage"]["completion_tokens"] == tokens


def test_a_node_that_is_not_the_first_has_only_its_health_and_its_page(tmp_path: Path) -> None:
    command = [PYTHON, "-m", "dynamometer.mocker", "--port", "0", "--nnodes", "2"]
    command += ["--node-rank", "1", "--dist-init-addr", "127.0.0.1:1"]
    with running(command, tmp_path / "log", {}) as process:
        url = process.wait_for(r"serving mock at (\S+);", within=20)[1]
        found = {
            path: http(f"{url}{path}").status for path in ("/health", "/metrics", "/v1/models")
        }
        assert found == {"/health": 200, "/metrics": 200, "/v1/models": 404}


def test_usage_that_an_engine_always_sends_reaches_the_client(tmp_path: Path) -> None:
    """The frontend reads the engine's flag in the worker's record."""
    stack = Stack(tmp_path, Path("mock"), tmp_path / "discovery")
    flags = ("--engine", "mocker", "--model", "mock", "--stream-response-default-include-usage")
    with stack.run_frontend() as (_, frontend), stack.run_worker(*flags) as worker:
        worker.wait_until_ready()
        ready = f"{frontend}/v1/health/ready?model=mock"
        eventually(lambda: http(ready).status == 200, within=10, what="the frontend is ready")
        body = {"model": "mock", "prompt": "hi", "max_tokens": 5, "stream": True}
        answer = http(f"{frontend}/v1/completions", body)
        assert b'"choices": [], "usage": {' in answer.body
        page = http(f"{frontend}/metrics").body.decode()
        assert re.search(r'dynamo_frontend_output_tokens_total\{model="mock"\} 5\.0', page)


def send_head(url: str, size: int) -> bytes:
    """Send `size` bytes of headers, many and long; return the beginning of the response."""
    body = b'{"model": "mock", "max_tokens": "none"}'
    lines = [b"Connection: close\r\n", b"Content-Length: %d\r\n" % len(body)]
    lines += [*[b"A: " + b"x" * 30_000 + b"\r\n"] * 2, *[b"B: y\r\n"] * 200]
    lines += [b"C: " + b"x" * (size - len(b"".join(lines)) - len(b"C: \r\n")) + b"\r\n"]
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\n" + b"".join(lines) + b"\r\n" + body)
        return client.makefile("rb").read()[:13]


def test_a_worker_serves_a_simulated_engine(tmp_path: Path) -> None:
    stack = Stack(tmp_path, Path("mock"), tmp_path / "discovery")
    flags = ("--engine", "mocker", "--model", "mock", "--enable-metrics", "--processes", "2")
    with stack.run_frontend() as (_, frontend), stack.run_worker(*flags) as worker:
        worker.wait_until_ready()
        eventually(
            lambda: http(f"{frontend}/v1/models").json()["data"],
            within=10,
            what="the frontend serves the model",
        )
        body = {"model": "mock", "prompt": "hi", "max_tokens": 5, "stream": True}
        answer = http(f"{frontend}/v1/completions", body)
        assert answer.status == 200
        assert b'"usage": {' not in answer.body
        page = http(f"{frontend}/metrics").body.decode()
        assert re.search(r'dynamo_frontend_output_tokens_total\{model="mock"\} 5\.0', page)
        assert send_head(frontend, 2**16) == b"HTTP/1.1 400 "  # of the engine
        assert send_head(frontend, 2**16 + 1) == b"HTTP/1.1 431 "
        assert re.search(
            r"^sglang:generation_tokens_total\{.*\} 5\.0$", worker.page(), re.MULTILINE
        )
        assert 'engine_type="mocker"' in worker.page()
        eventually(
            lambda: (
                "dynamo_frontend_model_max_num_seqs{" in http(f"{frontend}/metrics").body.decode()
            ),
            within=10,
            what="the frontend shows the members of server_info",
        )
        page = http(f"{frontend}/metrics").body.decode()
        assert 'dynamo_frontend_model_total_kv_blocks{model="mock"} ' in page
        assert 'dynamo_frontend_model_ready{model="mock"} 1.0' in page
        eventually(
            lambda: "dynamometer_engine_kv_usage_ratio{" in worker.page(),
            within=10,
            what="the processes that write metrics have written",
        )
        load = {
            family.name: [sample.value for sample in family.samples]
            for family in parse(worker.page())
            if family.name.startswith(("dynamometer_engine_", "dynamo_component_total_blocks"))
        }
        assert load["dynamometer_engine_generation_tokens"] == [5]
        assert not any(load["dynamometer_engine_scrape_errors"])
        assert load["dynamometer_engine_running_requests"] == [0]
        assert load["dynamometer_engine_queued_requests"] == [0]
        assert 0 <= load["dynamometer_engine_kv_usage_ratio"][0] <= 1
        assert load["dynamo_component_total_blocks"] == [8 * 32768]
        family = worker.process.descendants()
        assert len(family) >= 3
        worker.process.signal(9)
        eventually(
            lambda: not [p for p in family if p.is_running() and p.status() != "zombie"],
            within=10,
            what="its processes end with it",
        )
