"""Engines that hang: real ones, whose processes are stopped (SIGSTOP) and continued."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from processes import PYTHON, running
from stack import Stack, Worker, eventually
from stack import http as request

pytestmark = [pytest.mark.engine, pytest.mark.slow]

HANG_SECONDS = 4
# A question and a tick are due before and after the time of --hang-timeout.
DETECTED_SECONDS = HANG_SECONDS + 5
ANSWERING_SECONDS = 5
KEY = "a-key-that-no-file-contains"


class Generation(threading.Thread):
    """A request for many tokens, sent to a worker.

    Attributes:
        received: the number of bytes of the response so far.
        status: the status of the response; 0 before.
        ended: True if the response is complete.
    """

    def __init__(self, url: str, *, stream: bool, tokens: int, prompt: int = 8) -> None:
        super().__init__(daemon=True)
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        sampling = {"max_new_tokens": tokens, "ignore_eos": True}
        body = {"input_ids": [7] * prompt, "sampling_params": sampling, "stream": stream}
        self._body = json.dumps(body).encode()
        self.received = self.status = 0
        self.ended = False

    def send_only(self) -> None:
        """Send the request, and read no response."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        self._connection.request("POST", "/generate", self._body, headers)

    def run(self) -> None:
        with (
            contextlib.closing(self._connection),
            contextlib.suppress(OSError, http.client.HTTPException, AttributeError),
        ):
            self.send_only()
            response = self._connection.getresponse()
            while chunk := response.read1():
                self.received += len(chunk)
                self.status = response.status
            self.ended = True

    def close(self) -> None:
        """Close the connection, whatever it waits for."""
        if (sock := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)
        if self.is_alive():
            self.join(10)
        self._connection.close()


@contextlib.contextmanager
def load(worker: Worker, kind: str) -> Iterator[list[Generation]]:
    """Keep requests in flight: none, streamed ones, or ones that are answered in one piece."""
    count = 0 if kind == "idle" else 3
    requests = [
        Generation(worker.request_url, stream=kind == "streamed", tokens=300) for _ in range(count)
    ]
    for one in requests:
        one.start()
    try:
        if kind == "streamed":
            eventually(lambda: all(one.received for one in requests), within=20, what="streams")
        elif kind == "in one piece":
            eventually(lambda: in_flight(worker) == count, within=20, what="requests in flight")
        yield requests
    finally:
        for one in requests:
            one.close()


def in_flight(worker: Worker) -> float:
    (value,) = re.findall(
        r"^dynamo_component_inflight_requests{.*} (\S+)", worker.page(), re.MULTILINE
    )
    return float(value)


def find(worker: Worker, title: str) -> psutil.Process:
    """Return the process of the engine with a title; the first process if the title is `server`."""
    return worker.engine if title == "server" else worker.titled(title)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def check_hang(worker: Worker, title: str, kind: str, reason: str) -> None:
    """Stop and continue a process: before, while and after the engine is unresponsive."""
    before = len(worker.process.log)
    with load(worker, kind) as requests:
        with stopped(find(worker, title)):
            eventually(lambda: not worker.ready(), within=DETECTED_SECONDS, what="unresponsive")
            for one in requests:  # another rank may have answered it
                assert one.is_alive() or one.status == 200, "a request in flight was ended"
            refusal = request(f"{worker.request_url}/generate", {"text": "a"})
            assert refusal.status == 503
            assert "unresponsive" in refusal.body.decode()
            assert "x-dynamometer-retry" in {name.lower() for name in refusal.headers}
            eventually(lambda: health(worker)["attempts"], within=10, what="stacks")
            content = health(worker)
        eventually(worker.ready, within=ANSWERING_SECONDS, what="ready again")
        for one in requests:
            one.join(60)
            assert (one.ended, one.status) == (True, 200)
    again = r"the engine answers again, after \d+ s as unresponsive"
    eventually(lambda: re.search(again, worker.process.log[before:]), within=10, what="log")
    log = worker.process.log[before:]
    assert f"the engine is unresponsive: {reason} (asked for {HANG_SECONDS} s)" in log
    assert content["state"] == "unresponsive"
    assert str(content["reason"]).startswith(reason)
    paths = re.findall(r"wrote the stacks of the engine to (\S+)", log)
    assert len(paths) == 1, log
    path = paths[0]
    assert path in str(content["attempts"])
    check_stacks(Path(path), reason)


def check_stacks(path: Path, reason: str) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert reason in text
    for title in ("sglang::scheduler", "sglang::detokenizer", "sglang.launch_server", "event_loop"):
        assert title in text
    assert KEY not in text


def health(worker: Worker) -> dict[str, object]:
    return request(f"{worker.system_url}/health").json()


KINDS = ("idle", "streamed", "in one piece")


@pytest.fixture(scope="module")
def state_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XDG_RUNTIME_DIR of the workers."""
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="module")
def worker(stack: Stack, state_directory: Path) -> Iterator[Worker]:
    with stack.run_worker(
        *("--model", str(stack.model), "--served-model-name", "hanging", "--api-key", KEY),
        *("--enable-metrics", "--hang-timeout", str(HANG_SECONDS)),
        XDG_RUNTIME_DIR=str(state_directory),
        DYN_CANARY_WAIT_TIME="1",
    ) as started:
        yield started.wait_until_ready()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("scheduler", "its scheduler does not answer"),
        ("server", "its server does not answer"),
        ("detokenizer", "its ranks work, but no answer reaches its server"),
    ],
)
def test_an_engine_that_hangs_is_unresponsive_until_it_answers(
    worker: Worker, title: str, reason: str, kind: str
) -> None:
    check_hang(worker, title, kind, reason)


def test_new_requests_go_to_another_instance(stack: Stack, worker: Worker) -> None:
    mocker = ("--engine", "mocker", "--model", "hanging")
    body = {"model": "hanging", "prompt": "a", "max_tokens": 2}
    key = {"Authorization": f"Bearer {KEY}"}

    def from_mocker() -> bool:
        answer = request(f"{stack.frontend_url}/v1/completions", body, **key)
        assert answer.status == 200
        return answer.json().get("system_fingerprint") == "mocker"

    with stack.run_worker(*mocker) as second, stopped(find(worker, "scheduler")):
        second.wait_until_ready()
        eventually(lambda: not worker.ready(), within=DETECTED_SECONDS, what="unresponsive")
        eventually(lambda: '"unresponsive"' in str(request_states(stack)), within=5, what="seen")
        assert all(from_mocker() for _ in range(6))
    eventually(worker.ready, within=ANSWERING_SECONDS, what="ready again")


def request_states(stack: Stack) -> str:
    """Return the states of all workers, from the records in discovery."""
    return "".join(path.read_text() for path in stack.discovery.rglob("*.json"))


def test_the_canary_leaves_request_counters_and_logs_alone(worker: Worker) -> None:
    def counts() -> list[str]:
        return re.findall(
            r"^(?:sglang:num_requests_total|sglang:prompt_tokens_total|dynamo_component_requests"
            r"_total).*",
            worker.page(),
            re.MULTILINE,
        )

    before, log = counts(), len(worker.process.log)
    canaries = _canaries(worker)
    eventually(lambda: _canaries(worker) >= canaries + 3, within=15, what="canaries")
    assert counts() == before
    assert not re.findall(r".*(?:PUT|/v1/loads|Prefill batch).*", worker.process.log[log:])


def _canaries(worker: Worker) -> float:
    """Return the number of requests that the engine's server has answered at the canary's route."""
    pattern = r'^sglang:http_responses_total{.*method="PUT".*} (\S+)'
    counts = re.findall(pattern, worker.page(), re.MULTILINE)
    return sum(map(float, counts))


@pytest.fixture(scope="module")
def two_ranks(stack: Stack, state_directory: Path) -> Iterator[Worker]:
    with stack.run_worker(
        *("--model", str(stack.model), "--served-model-name", "two-ranks", "--dp-size", "2"),
        *("--enable-metrics", "--hang-timeout", str(HANG_SECONDS)),
        XDG_RUNTIME_DIR=str(state_directory),
        DYN_CANARY_WAIT_TIME="1",
        SGLANG_CPU_OMP_THREADS_BIND="0|1",
    ) as started:
        yield started.wait_until_ready()


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_two_ranks_that_hangs_is_named(two_ranks: Worker, kind: str) -> None:
    check_hang(two_ranks, "scheduler_DP1", kind, "data-parallel rank 1 does not answer")


BUSY = "while True: pass"


def test_a_healthy_engine_is_never_unresponsive(stack: Stack, tmp_path: Path) -> None:
    """Everything that delays answers, for LOAD_SECONDS: a busy machine, a full engine, the longest
    prompts, a client that does not read, and a worker that is stopped.
    """
    worker = stack.worker
    assert worker is not None
    before = len(worker.process.log)
    seconds = float(os.environ.get("LOAD_SECONDS", "120"))
    with contextlib.ExitStack() as exits:
        for number in range(2):
            command = [PYTHON, "-c", BUSY]
            exits.enter_context(running(command, tmp_path / f"busy-{number}.log", {}))
        unread = Generation(worker.request_url, stream=True, tokens=2000)
        exits.callback(unread.close)
        unread.send_only()
        started = time.monotonic()
        was_stopped = False
        started_count = 0
        generations: list[Generation] = []
        while (elapsed := time.monotonic() - started) < seconds:
            generations = [one for one in generations if one.is_alive()]
            while len(generations) < 12:
                number = len(generations)
                one = Generation(
                    worker.request_url,
                    stream=number % 2 == 0,
                    tokens=4 if number % 3 == 0 else 300,
                    prompt=2000 if number % 3 == 0 else 8,
                )
                one.start()
                started_count += 1
                generations.append(one)
            if not was_stopped and elapsed > 20:
                was_stopped = True
                with stopped(psutil.Process(worker.process.pid)):
                    time.sleep(20)  # longer than --hang-timeout
            assert worker.ready()
            time.sleep(0.2)
        answered = started_count - len(generations)
        for one in generations:
            one.close()
    print(f"{seconds:.0f} s, answered requests: {answered}")
    assert answered
    assert "unresponsive" not in worker.process.log[before:]
