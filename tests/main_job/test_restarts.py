"""The page, the health answer and the streams of a worker whose engine dies and is restarted.

A thread fetches the page and the health answer every 50 ms, from before the first kill until after
the last restart.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
from counting import Client, Got, Request

from onlooker import Onlooker, check_totals, total
from stack import Stack, Worker, eventually

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MODEL: Final = "mortal"
TEXTS: Final = "/v1/completions"
LONG: Final = {
    "model": MODEL,
    "prompt": "hi",
    "max_tokens": 1800,
    "stream": True,
    "ignore_eos": True,
}
SHORT: Final = {"model": MODEL, "prompt": "hi", "max_tokens": 4, "ignore_eos": True}


def process(worker: Worker, title: str) -> psutil.Process:
    """Return the process of the engine with a title; the server has its command line."""
    for found in [worker.engine, *worker.engine.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            if title in " ".join(found.cmdline()):
                return found
    raise AssertionError(f"no {title}")


@dataclass(frozen=True)
class Mortal:
    """A worker whose engine the tests kill, and the address of its frontend."""

    worker: Worker
    frontend: str

    def answered(self) -> Got:
        return Client(self.frontend, Request(path=TEXTS, body=SHORT)).read()


@pytest.fixture(scope="module")
def mortal(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    directory = tmp_path_factory.mktemp("mortal")
    stack = Stack(directory, tiny_model, directory / "discovery")
    flags = ("--model", str(tiny_model), "--served-model-name", MODEL, "--enable-metrics")
    with stack.run_frontend() as (_, frontend), stack.run_worker(*flags) as worker:
        yield Mortal(worker.wait_until_ready(), frontend)


def test_the_page_goes_on_through_the_death_of_a_scheduler_and_the_restart(mortal: Mortal) -> None:
    worker, answered = mortal.worker, mortal.answered
    with Onlooker(worker).looking() as onlooker:
        assert [answered().status for _ in range(3)] == [200] * 3
        counted = "sglang:num_requests_total"
        eventually(lambda: onlooker.total(counted) == 3, within=15, what="three are counted")
        former = worker.engine.pid, worker.engine_url
        stream = Client(mortal.frontend, Request(path=TEXTS, body=LONG))
        stream.read_events(5)
        process(worker, "sglang::scheduler").kill()
        killed = time.monotonic()
        events = stream.read().body.split(b"\n\n")
        assert b'"code": "engine_error"' in events[-2]
        eventually(lambda: not worker.ready(), within=5, what="health")
        assert answered().status == 503
        worker.wait_until_ready()
        assert onlooker.not_ready_after(killed) < 3  # about 0.2 s without other load
        assert former != (worker.engine.pid, worker.engine_url)
        assert "process sglang::scheduler: it was killed by signal 9" in worker.process.log
        assert answered().status == 200
        eventually(lambda: onlooker.total(counted) == 4, within=15, what="four are counted")
    assert onlooker.faults == []
    check_totals(onlooker.looks)
    gauges = [total(page, "sglang:max_total_num_tokens") for page in onlooker.pages_since(killed)]
    assert -1 in gauges  # while no scheduler lives
    assert gauges[-1] > 0
    page = onlooker.looks[-1].page
    assert len(set(re.findall(rb'worker_id="(\w+)"', page))) == 1


def test_the_page_goes_on_when_an_engine_dies_again_while_it_restarts(mortal: Mortal) -> None:
    worker, answered = mortal.worker, mortal.answered
    started = worker.process.log.count("engine started")
    counted = "sglang:num_requests_total"
    with Onlooker(worker).looking() as onlooker:
        eventually(lambda: onlooker.looks, within=15, what="a page")
        before = max(onlooker.total(counted), 0) + 1  # no series before the first request
        assert answered().status == 200
        eventually(lambda: onlooker.total(counted) == before, within=15, what="one is counted")
        process(worker, "sglang::detokenizer").kill()
        worker.process.wait_for("process sglang::detokenizer: it was killed", within=5)
        eventually(
            lambda: worker.process.log.count("engine started") == started + 1,
            within=20,
            what="the engine is started again",
        )
        # The worker may also have a child that it adopted and has not reaped yet.
        pid = re.findall(r"engine started, process (\d+)", worker.process.log)[-1]
        psutil.Process(int(pid)).kill()
        eventually(
            lambda: worker.process.log.count("engine started") == started + 2,
            within=20,
            what="the engine is started a second time",
        )
        worker.wait_until_ready()
        assert answered().status == 200
        eventually(lambda: onlooker.total(counted) == before + 1, within=15, what="one more")
    assert onlooker.faults == []
    check_totals(onlooker.looks)
    (directory,) = {
        Path(found.path).parent
        for found in process(worker, "sglang::scheduler").memory_maps()
        if found.path.endswith(".db")
    }
    pids = {path.stem.rpartition("_")[2] for path in directory.rglob("*.db")}
    assert pids <= {str(one.pid) for one in worker.process.descendants()}


def test_families_of_the_engines_own_page_go_on_from_the_last_fetch(
    tiny_model: Path, tmp_path: Path
) -> None:
    """SGLang's Rust server shows its families only on its own page."""
    stack = Stack(tmp_path, tiny_model, tmp_path / "discovery")
    flags = ("--model", str(tiny_model), "--served-model-name", MODEL, "--enable-metrics")
    with stack.run_worker(*flags, SGLANG_RUST_SERVER="1") as worker:
        worker.wait_until_ready()

        def answered() -> Got:
            return Client(worker.request_url, Request(path=TEXTS, body=SHORT)).read()

        with Onlooker(worker).looking() as onlooker:
            assert [answered().status for _ in range(3)] == [200] * 3
            counted = "sglang:num_requests_total"
            eventually(lambda: onlooker.total(counted) == 3, within=15, what="three")
            worker.engine.kill()
            eventually(lambda: not worker.ready(), within=5, what="health")
            worker.wait_until_ready()
            assert onlooker.total(counted) == 3
            assert answered().status == 200
            eventually(lambda: onlooker.total(counted) == 4, within=15, what="four")
        assert not onlooker.faults
        check_totals(onlooker.looks)
