"""One side hangs, dies, or is left by its client: the other side has no request left."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
import urllib.parse
from collections.abc import Iterator

import psutil
import pytest

from disagg.pair import HANG_SECONDS, TEXT, Pair, queued
from page_values import value
from stack import Answer, Worker, eventually
from stack import http as fetch

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# A question and a tick are due before and after the time of --hang-timeout.
DETECTED_SECONDS = HANG_SECONDS + 10
# An engine notices a closed connection once a second; a frontend aborts the other side at once.
IDLE_SECONDS = 8
READY_SECONDS = 60
SIDES = ("prefill", "decode")
# A request that either engine answers alone, by SGLang's own fake transfer. SGLang updates its
# gauges with a batch of prompts, and every 40 batches of answers.
WITHOUT_TRANSFER = {
    "text": "hi",
    "sampling_params": {"max_new_tokens": 100, "ignore_eos": True},
    "bootstrap_host": "2.2.2.2",
    "bootstrap_room": 0,
}
ABORTED = "sglang:num_aborted_requests_total"


@pytest.fixture(autouse=True)
def ready(pair: Pair) -> Iterator[None]:
    """Start each test with a pair that answers, and without a request."""
    eventually(lambda: pair.ready().status == 200, within=READY_SECONDS, what="a ready pair")
    yield
    pair.wait_until_idle(within=IDLE_SECONDS)
    assert pair.complete().status == 200


def sides(pair: Pair, lost: str) -> tuple[Worker, Worker]:
    """Return the worker of the lost side, and the other one."""
    return pair.workers if lost == "prefill" else (pair.decode, pair.prefill)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[psutil.Process]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # a test may kill it
            process.send_signal(signal.SIGCONT)


class Client:
    """A stream on a connection of its own, which a context closes."""

    def __init__(self, pair: Pair, **members: object) -> None:
        address = urllib.parse.urlsplit(pair.url)
        self._connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=60
        )
        body = {**TEXT, "prompt": "on and on", "max_tokens": 900, "stream": True, **members}
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        self._response: http.client.HTTPResponse | None = None

    def read_some(self) -> bytes:
        """Return the first bytes of the response."""
        self._response = self._connection.getresponse()
        return self._response.read1(300)

    def read_rest(self) -> bytes:
        """Return the other bytes of the response."""
        assert self._response is not None
        return self._response.read()

    def close(self) -> None:
        """Close the connection, whatever it waits for."""
        if self._response is not None:
            self._response.close()
        self._connection.close()


class Question(threading.Thread):
    """A request in a thread.

    Attributes:
        answer: its answer; None before.
    """

    def __init__(self, pair: Pair, **members: object) -> None:
        super().__init__(daemon=True)
        self._pair = pair
        self._members = members
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._pair.complete(**self._members)


def check_error(answer: Answer | None) -> None:
    """Check that an answer is an error in OpenAI's form about a worker that was lost."""
    assert answer is not None
    assert answer.status in (502, 503), answer
    error = answer.json()["error"]
    assert isinstance(error, dict)
    assert error["type"]
    assert error["message"]


def test_a_client_that_leaves_a_stream_leaves_no_request(pair: Pair) -> None:
    before = value(pair.decode.page(), ABORTED)
    with contextlib.closing(Client(pair, max_tokens=1800)) as client:
        assert client.read_some()
    eventually(
        lambda: value(pair.decode.page(), ABORTED) == before + 1,
        within=IDLE_SECONDS,
        what="the engine ends the stream",
    )
    pair.wait_until_idle(within=IDLE_SECONDS)


@pytest.mark.parametrize(
    ("lost", "queue"),
    [
        ("decode", "sglang:num_prefill_bootstrap_queue_reqs"),
        ("prefill", "sglang:num_decode_transfer_queue_reqs"),
    ],
)
def test_a_request_that_waits_is_in_a_queue_of_the_other_side(
    pair: Pair, lost: str, queue: str
) -> None:
    hung, other = sides(pair, lost)
    with stopped(hung.scheduler), contextlib.closing(Client(pair)):
        eventually(lambda: queued(other) == 1, within=5, what="the other side waits")
        assert fetch(f"{other.engine_url}/generate", WITHOUT_TRANSFER).status == 200
        eventually(lambda: value(other.page(), queue) == 1, within=5, what=queue)


@pytest.mark.parametrize("lost", SIDES)
def test_a_client_that_leaves_a_request_that_waits_leaves_no_request(pair: Pair, lost: str) -> None:
    hung, other = sides(pair, lost)
    with stopped(hung.scheduler):
        with contextlib.closing(Client(pair)):
            eventually(lambda: queued(other) == 1, within=5, what="the other side waits")
        eventually(lambda: queued(other) == 0, within=IDLE_SECONDS, what="nothing waits")
        assert hung.ready()


@pytest.mark.parametrize("lost", SIDES)
def test_a_side_that_hangs_ends_the_request_on_both_sides(pair: Pair, lost: str) -> None:
    hung, other = sides(pair, lost)
    log = len(other.process.log)
    with stopped(hung.scheduler):
        question = Question(pair)
        eventually(lambda: queued(other) == 1, within=5, what="the other side waits")
        question.join(DETECTED_SECONDS)
        check_error(question.answer)
        assert not hung.ready()
        readiness = pair.ready()
        assert readiness.status == 503
        assert lost in str(readiness.json()["reason"])
        check_error(pair.complete())
        eventually(lambda: queued(other) == 0, within=IDLE_SECONDS, what="nothing waits")
        assert other.ready()
    eventually(hung.ready, within=10, what="ready again")
    pair.wait_until_idle(within=IDLE_SECONDS)
    assert "unresponsive" not in other.process.log[log:]


@pytest.mark.parametrize("lost", SIDES)
def test_a_side_that_dies_restarts_alone(pair: Pair, lost: str) -> None:
    dead, other = sides(pair, lost)
    engine, log = other.engine.pid, len(other.process.log)
    with contextlib.closing(Client(pair)) as client:
        assert client.read_some()
        with stopped(dead.scheduler) as process:
            question = Question(pair)
            eventually(lambda: queued(other) == 1, within=5, what="the other side waits")
            process.kill()
            question.join(20)
        check_error(question.answer)
        eventually(lambda: pair.ready().status == 503, within=5, what="one side is missing")
        assert lost in str(pair.ready().json()["reason"])
        end = client.read_rest()
        assert (b'"error"' if lost == "decode" else b'"finish_reason":"length"') in end
    dead.wait_until_ready()
    eventually(lambda: pair.ready().status == 200, within=5, what="both sides")
    assert pair.complete().status == 200
    assert value(dead.page(), "dynamometer_engine_restarts_total") >= 1
    assert other.engine.pid == engine
    assert "unresponsive" not in other.process.log[log:]
