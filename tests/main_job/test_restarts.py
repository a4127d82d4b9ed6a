"""The page, the health answer and the streams of a worker whose engine dies and is restarted.

A thread fetches the page and the health answer every 50 ms, from before the first kill until after
the last restart.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Final

import psutil
import pytest
from counting import Client, Got, Request

from onlooker import Onlooker, check_totals, total
from stack import Stack, Worker, eventually

pytestmark = pytest.mark.engine

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


def test_the_page_goes_on_through_deaths_and_restarts_of_the_engine(
    tiny_model: Path, tmp_path: Path
) -> None:
    stack = Stack(tmp_path, tiny_model, tmp_path / "discovery")
    flags = ("--model", str(tiny_model), "--served-model-name", MODEL, "--enable-metrics")
    with stack.run_frontend() as (_, frontend), stack.run_worker(*flags) as worker:
        worker.wait_until_ready()

        def answered() -> Got:
            return Client(frontend, Request(path=TEXTS, body=SHORT)).read()

        with Onlooker(worker).looking() as onlooker:
            assert [answered().status for _ in range(3)] == [200] * 3
            eventually(
                lambda: onlooker.total("sglang:num_requests_total") == 3,
                within=10,
                what="three requests are counted",
            )
            former = worker.engine.pid, worker.engine_url
            stream = Client(frontend, Request(path=TEXTS, body=LONG))
            stream.read_events(5)
            process(worker, "sglang::scheduler").kill()
            killed = time.monotonic()
            events = stream.read().body.split(b"\n\n")
            assert time.monotonic() - killed < 2
            assert b'"code": "engine_error"' in events[-2]
            assert answered().status == 503
            eventually(lambda: not worker.ready(), within=1, what="health")
            worker.wait_until_ready()
            assert onlooker.not_ready_after(killed) < 1
            assert former != (worker.engine.pid, worker.engine_url)
            assert "process sglang::scheduler: it was killed by signal 9" in worker.process.log
            assert answered().status == 200
            eventually(
                lambda: onlooker.total("sglang:generation_tokens_total") >= 16,
                within=10,
                what="the first request after the restart is counted",
            )
            hidden = [
                total(page, "sglang:max_total_num_tokens") < 0
                for page in onlooker.pages_since(killed)
            ]
            assert any(hidden)

            process(worker, "sglang::detokenizer").kill()
            worker.process.wait_for("process sglang::detokenizer: it was killed", within=5)
            # The next engine dies as well, before it is ready.
            eventually(
                lambda: len(re.findall("engine started", worker.process.log)) == 3,
                within=20,
                what="the engine is started again",
            )
            worker.engine.kill()
            worker.process.wait_for("it was killed by signal 9 .* after 4 s", within=5)
            worker.wait_until_ready()
            assert answered().status == 200
            eventually(
                lambda: onlooker.total("sglang:num_requests_total") == 5,
                within=10,
                what="the requests that were answered are counted",
            )
        assert onlooker.faults == []
        check_totals(onlooker.looks)
        page = onlooker.looks[-1].page
        assert b'worker_id="' in page
        assert len(set(re.findall(rb'worker_id="(\w+)"', page))) == 1
        (directory,) = {
            Path(found.path).parent
            for found in process(worker, "sglang::scheduler").memory_maps()
            if found.path.endswith(".db")
        }
        pids = {path.stem.rpartition("_")[2] for path in directory.rglob("*.db")}
        living = {str(one.pid) for one in worker.process.descendants()}
        assert pids <= living
        worker.process.signal(15)
        assert worker.process.wait(within=20) == 0


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
