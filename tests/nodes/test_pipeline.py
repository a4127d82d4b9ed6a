"""The real engine with two pipeline stages: its load signals while six streams run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from page_values import value
from stack import Stack, Worker, eventually, http

pytestmark = [pytest.mark.engine, pytest.mark.slow]

STREAMS = 6
BODY = {"model": "staged", "stream": True, "max_tokens": 80, "ignore_eos": True}
RUNNING = "dynamometer_engine_running_requests"
QUEUED = "dynamometer_engine_queued_requests"
USAGE = "dynamometer_engine_kv_usage_ratio"
STARTED = "dynamo_component_inflight_requests"


@pytest.fixture
def staged(tiny_model: Path, tmp_path: Path) -> Iterator[Worker]:
    stack = Stack(tmp_path, tiny_model, tmp_path / "discovery")
    flags = ("--served-model-name", "staged", "--enable-metrics", "--pp-size", "2")
    with stack.run_worker("--model", str(tiny_model), *flags) as worker:
        yield worker.wait_until_ready()


def test_running_requests_of_a_pipeline_are_those_of_one_micro_batch(staged: Worker) -> None:
    """A fault of SGLang that docs/metrics.md describes: sgl-project/sglang#32158."""

    def stream(number: int) -> int:
        body = {**BODY, "prompt": f"{number} is the number of this stream"}
        return http(f"{staged.request_url}/v1/completions", body).status

    pages = []
    with ThreadPoolExecutor(STREAMS) as pool:
        answers = [pool.submit(stream, number) for number in range(STREAMS)]
        while not any(answer.done() for answer in answers):
            pages.append(staged.page())
            time.sleep(0.2)  # the engine needs both cores
    assert [answer.result() for answer in answers] == [200] * STREAMS
    # SGLang reports a batch when it has decoded some tokens.
    busy = [page for page in pages if value(page, STARTED) == STREAMS and value(page, USAGE)]
    assert busy
    for page in busy:
        assert 0 < value(page, RUNNING) < STREAMS
        assert value(page, QUEUED) == 0
        for stage in ("0", "1"):
            assert value(page, "sglang:num_used_tokens", pp_rank=stage) > 0
    eventually(
        lambda: not any(value(staged.page(), name) for name in (RUNNING, QUEUED, USAGE)),
        within=10,
        what="an idle engine",
    )
