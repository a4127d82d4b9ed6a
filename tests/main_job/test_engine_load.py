"""The load signals on the page equal the load of the real engine."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.engines.sglang_snapshots import LoadSnapshots
from stack import Stack, Worker, eventually, ops_url
from stack import http as get

pytestmark = pytest.mark.engine
REQUESTS, TOKENS = 6, 300
TOTALS = ("prompt_tokens_total", "cached_prompt_tokens_total")


def values(worker: Worker, name: str, **own: str) -> list[float]:
    return [
        sample.value
        for family in parse(worker.page())
        for sample in family.samples
        if sample.name == name and own.items() <= sample.labels.items()
    ]


def load(worker: Worker, name: str) -> float:
    """Return the value of a family that has one series."""
    (value,) = values(worker, f"dynamometer_engine_{name}")
    return value


def serve(stack: Stack, url: str, model: str) -> int:
    """Send requests at the same time, and return the number of tokens of the answers."""

    def one(_: int) -> int:
        body = {"model": model, "prompt": "on and on", "max_tokens": TOKENS, "ignore_eos": True}
        answer = get(f"{url}/v1/completions", body)
        assert answer.status == 200, answer.body
        usage = answer.json()["usage"]
        assert isinstance(usage, dict)
        return int(usage["completion_tokens"])

    with ThreadPoolExecutor(REQUESTS) as pool:
        return sum(pool.map(one, range(REQUESTS)))


def wait_until_idle(worker: Worker) -> None:
    """Wait until the load signals are 0, within the documented time after the last request."""
    for name in ("running_requests", "queued_requests", "kv_usage_ratio"):
        eventually(lambda name=name: load(worker, name) == 0, within=5, what=f"{name} 0")  # type: ignore[misc]


class Watched:
    """The maximum of a load signal while the context is open."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker, self._name = worker, name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.highest = 0.0

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.highest = max(self.highest, load(self._worker, self._name))

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_the_load_is_the_engines(stack: Stack) -> None:
    worker = stack.worker
    assert worker is not None
    before = load(worker, "generation_tokens_total")
    with Watched(worker, "running_requests") as running:
        tokens = serve(stack, stack.frontend_url, str(stack.model))
    assert 1 < running.highest <= REQUESTS
    assert tokens == REQUESTS * TOKENS
    eventually(
        lambda: load(worker, "generation_tokens_total") == before + tokens,
        within=10,
        what="all tokens counted",
    )
    wait_until_idle(worker)
    assert load(worker, "generation_tokens_total") == sum(
        values(worker, "sglang:generation_tokens_total")
    )


def test_clients_that_leave_the_engine_leave_no_load(stack: Stack) -> None:
    """More requests than run at once, sent to the engine itself, whose clients disconnect."""
    worker = stack.worker
    assert worker is not None
    address = urllib.parse.urlsplit(worker.engine_url)
    assert address.hostname
    pids = [process.pid for process in worker.engine.children(recursive=True)]
    snapshots = LoadSnapshots(lambda: pids)
    eventually(lambda: snapshots.read().idle_ranks() == {"0", ""}, within=5, what="an idle rank")
    content = {"text": "on and on " * 40, "stream": True}
    body = json.dumps(content | {"sampling_params": {"max_new_tokens": 1000, "ignore_eos": True}})
    with contextlib.ExitStack() as clients:
        for _ in range(3 * REQUESTS):
            connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
            clients.enter_context(contextlib.closing(connection))
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        eventually(lambda: load(worker, "queued_requests") > 0, within=30, what="a queue")
        assert snapshots.read().idle_ranks() == frozenset()
    wait_until_idle(worker)
    eventually(lambda: snapshots.read().idle_ranks() == {"0", ""}, within=5, what="an idle rank")


def test_the_counters_give_the_true_cache_hit_rate(stack: Stack) -> None:
    worker = stack.worker
    assert worker is not None
    before = {name: load(worker, name) for name in TOTALS}
    prompt = "a prefix that no other test has " * 20
    body = {"text": prompt, "sampling_params": {"max_new_tokens": 1}}
    prompt_tokens = cached_tokens = 0
    for _ in range(3):
        answer = get(f"{worker.request_url}/generate", body)
        meta = answer.json()["meta_info"]
        assert isinstance(meta, dict)
        prompt_tokens += meta["prompt_tokens"]
        cached_tokens += meta["cached_tokens"]
    assert cached_tokens > prompt_tokens / 2
    expected = dict(zip(TOTALS, (prompt_tokens, cached_tokens), strict=True))
    eventually(
        lambda: {name: load(worker, name) - before[name] for name in TOTALS} == expected,
        within=10,
        what="all tokens counted",
    )


def test_the_kv_cache_is_shown_as_nvidia_dynamo_does(stack: Stack) -> None:
    worker = stack.worker
    assert worker is not None
    own = {"dp_rank": "0", "dynamo_component": "backend", "model": str(stack.model)}
    (blocks,) = values(worker, "dynamo_component_total_blocks", **own)
    assert [blocks] == values(worker, "sglang:num_pages")
    assert blocks > 0
    (used,) = values(worker, "dynamo_component_gpu_cache_usage_percent", **own)
    assert 0 <= used < 1
    (hits,) = values(worker, "dynamo_component_kv_cache_hit_rate", **own)
    assert 0 <= hits <= 1


@pytest.mark.slow
def test_two_data_parallel_ranks_are_one_worker(stack: Stack) -> None:
    """Both ranks are real and report their load; one of them has requests of its own."""
    flags = ("--model", str(stack.model), "--enable-metrics", "--dp-size", "2")
    with stack.run_worker(*flags, SGLANG_CPU_OMP_THREADS_BIND="0|1") as worker:
        worker.wait_until_ready()
        with Watched(worker, "running_requests") as running:
            tokens = serve(stack, worker.request_url, str(stack.model))
        ranks = values(worker, "sglang:num_running_reqs")
        assert len(ranks) == 2
        assert 1 < running.highest <= REQUESTS
        eventually(
            lambda: load(worker, "generation_tokens_total") == tokens,
            within=10,
            what="all tokens counted",
        )
        pages = values(worker, "sglang:num_pages")
        assert len(pages) == 2
        for rank, expected in enumerate(pages):
            own = {"dp_rank": str(rank)}
            assert values(worker, "dynamo_component_total_blocks", **own) == [expected]
            assert len(values(worker, "dynamo_component_kv_cache_hit_rate", **own)) == 1
        assert load(worker, "kv_usage_ratio") == pytest.approx(
            sum(values(worker, "sglang:token_usage")) / 2
        )
        assert stack.frontend is not None
        workers = json.loads(get(f"{ops_url(stack.frontend)}/loads").body)["workers"]
        page = worker.page()
        (shown,) = [one for one in workers if f'worker_id="{one["worker_id"]}"' in page]
        assert [rank["dp_rank"] for rank in shown["ranks"]] == ["0", "1"]
        assert shown["running"] == sum(rank["running"] for rank in shown["ranks"]) == 0
        usage = sum(rank["kv_usage"] for rank in shown["ranks"]) / 2
        assert usage == pytest.approx(load(worker, "kv_usage_ratio"))
