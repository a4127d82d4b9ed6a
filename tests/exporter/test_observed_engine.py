"""One engine and its checks: it is lost and returns, and each event is logged once."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import psutil
import pytest

from dynamometer.exporter.observed_engine import ObservedEngine
from dynamometer.exporter.targets import EngineOptions, Target
from dynamometer.http.addresses import free_port
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.runtime.record import State
from exporting import Exporter, Page, exporter, imitation
from processes import PYTHON, running
from stack import eventually

pytestmark = pytest.mark.slow

PAGE = "# TYPE sglang:running gauge\nsglang:running 1\n"


def warnings(found: Exporter) -> Sequence[str]:
    """Return the warnings and errors in the log."""
    return [line for line in found.log.splitlines() if "warning: " in line or "error: " in line]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("interval", ["10", "0.1"])
def test_the_end_of_an_engine_with_a_url_is_one_warning(
    host: str, interval: str, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://{host}:{port}"
    server = Page(port, PAGE, paths=("/health", "/metrics"))
    with exporter(tmp_path, "--engine-url", url, "--health-interval", interval) as found:
        for ends in (1, 2):
            found.wait_until_ready("engine")
            eventually(lambda: "sglang:running" in found.page(), within=8, what="the page")
            server.end()
            eventually(lambda: "sglang:running" not in found.page(), within=8, what="ended")
            reason = f"{url}: no process listens there"
            assert found.health()[1]["reasons"] == {"engine": reason}
            assert warnings(found) == [f"[exporter] warning: engine: {reason}"] * ends
            server = Page(port, PAGE, paths=("/health", "/metrics"))
    server.end()


def test_the_end_of_an_engine_with_a_process_is_one_warning(tmp_path: Path) -> None:
    with imitation(tmp_path) as engine:
        flags = ("--pid", f"a={engine.pid}", "--health-interval", "0.1")
        with exporter(tmp_path, *flags) as found:
            found.wait_until_ready("a").process.wait_for("have no multiprocess files", within=10)
            before = warnings(found)
            engine.process.signal(9)
            engine.process.wait(within=10)
            eventually(lambda: not found.ready("a"), within=5, what=found.log)
            reason = f"process {engine.pid} (SGLang) has ended"
            eventually(lambda: reason in found.log, within=5, what=found.log)
            assert warnings(found)[len(before) :] == [f"[exporter] warning: a: {reason}"]


def test_an_engine_that_lives_and_does_not_answer_is_unresponsive(tmp_path: Path) -> None:
    with imitation(tmp_path) as engine:
        flags = ("--pid", f"a={engine.pid}", "--health-interval", "0.1")
        with exporter(tmp_path, *flags) as found:
            found.wait_until_ready("a")

            def shown(state: str) -> bool:
                page = found.page()
                states = re.findall(r'dynamometer_engine_state{[^}]*state="(\w+)"[^}]*} 1', page)
                assert len(states) == 1
                return states == [state]

            assert shown("ready")
            engine.set_status(503)
            eventually(lambda: shown("unresponsive"), within=8, what=found.log)
            status, body = found.health()
            assert status == 503
            assert str(body["state"]) == "unresponsive"
            assert "answers 503" in body["reasons"]["a"]
            start = re.search(r"dynamometer_engine_start_time_seconds{[^}]*} (\S+)", found.page())
            assert start
            assert abs(float(start[1]) - psutil.Process(engine.pid).create_time()) < 0.1
            engine.set_status(200)
            eventually(lambda: shown("ready"), within=8, what=found.log)
            engine.process.signal(9)
            eventually(lambda: shown("failed"), within=8, what=found.log)


WRITER = """
import os, time
from prometheus_client import Counter
Counter("sglang:requests", "r").inc()
print("written", flush=True)
time.sleep(600)
"""


def test_the_end_of_a_writer_whose_directory_is_removed_is_one_warning(tmp_path: Path) -> None:
    directory = tmp_path / "files"
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}

    def run_and_end(found: Exporter) -> None:
        directory.mkdir()
        with running([PYTHON, "-c", WRITER], tmp_path / "writer.log", variables) as writer:
            writer.wait_for("written", within=10)
            found.wait_until_ready("engine")
            writer.signal(9)
            writer.wait(within=10)
            shutil.rmtree(directory)
            eventually(lambda: not found.ready("engine"), within=8, what=found.log)

    with exporter(tmp_path, "--multiproc-dir", str(directory)) as found:
        found.process.wait_for("does not exist", within=10)
        run_and_end(found)
        run_and_end(found)  # the checks of the ended engine have run before
        missing, *ends = warnings(found)
    assert missing == f"[exporter] warning: engine: {directory} does not exist"
    assert len(ends) == 2
    assert all(end.endswith("has ended") for end in ends)


def test_the_space_of_the_files_is_shown_while_their_directory_exists(tmp_path: Path) -> None:
    directory = tmp_path / "files"
    directory.mkdir()
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    values = r"^dynamometer_engine_metrics_directory_(\w+){[^}]*} (\S+)"
    with (
        running([PYTHON, "-c", WRITER], tmp_path / "writer.log", variables) as writer,
        exporter(tmp_path, "--multiproc-dir", str(directory)) as found,
    ):
        writer.wait_for("written", within=10)

        def shown() -> dict[str, float]:
            page = found.page()
            return {name: float(value) for name, value in re.findall(values, page, re.MULTILINE)}

        eventually(lambda: shown().keys() == {"bytes", "available_bytes"}, within=8, what=found.log)
        assert min(shown().values()) > 0
        shutil.rmtree(directory)
        eventually(lambda: not shown(), within=15, what=found.log)


def test_missing_files_are_reported_once_the_engine_is_ready(tmp_path: Path) -> None:
    """A loading engine has not created its files yet."""
    missing = "have no multiprocess files"
    with imitation(tmp_path, status=503) as engine, exporter(tmp_path) as found:
        found.process.wait_for(rf"sglang-{engine.port}: process {engine.pid} ", within=10)
        eventually(
            lambda: "answers 503" in found.health()[1].get("reasons", {}).get(engine.name, ""),
            within=10,
            what=f"the files are searched, and the engine loads\n{found.log}",
        )
        assert missing not in found.log
        engine.set_status(200)
        found.process.wait_for(f"process {engine.pid} .*{missing}", within=10)
        assert found.log.count(missing) == 1


def test_a_fault_of_the_page_is_one_warning(tmp_path: Path) -> None:
    server = Page(0, "", paths=("/health",))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with exporter(tmp_path, "--engine-url", url) as found:
        eventually(
            lambda: "answers 404" in str(found.health()),
            within=10,
            what=found.log,
        )
        (warning,) = warnings(found)
        assert f"{url}/metrics: answers 404 Not Found" in warning
    server.end()


async def test_an_engine_whose_host_name_disappears_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name of a container ends with it. The gauges disappear, and reappear after a restart."""
    port = free_port()
    server = Page(
        port,
        PAGE.replace("sglang", "vllm")
        + "# TYPE vllm:requests_total counter\nvllm:requests_total 7\n",
    )
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
