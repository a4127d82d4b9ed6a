"""Loads for `make bench-serving`: client processes, and the cost of a path while they run."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving_answers import AnswerError, check_tokens, checksum_of
from serving_client import Load, Measured, percentile
from serving_machine import cpu_seconds, resident_bytes
from serving_paths import MODEL, ServingPath
from starting import say

_CLIENT = Path(__file__).with_name("serving_client.py")
_HEADERS = {"Content-Type": "application/json"}
_SCRAPE = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    "Accept-Encoding": "gzip",
}
_SETTLES = 0.3  # seconds between the start of the last stream and the window
_REPORTS = 30.0  # seconds between two lines about the progress


class FailedAnswersError(Exception):
    """Answers were wrong or missing; the message has their number and the first faults."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The requests of a load.

    Attributes:
        tokens: the tokens of each answer.
        prompt_bytes: the bytes of each prompt.
        rate: tokens per second of each stream.
        first_token_seconds: the time before the first token.
        keep_alive: send the requests of a stream over one connection.
    """

    tokens: int
    rate: float
    first_token_seconds: float
    prompt_bytes: int = 200
    keep_alive: bool = False

    @property
    def seconds(self) -> float:
        """The time of one answer by the engine."""
        return self.first_token_seconds + self.tokens / self.rate

    @property
    def body(self) -> str:
        words = "why is the licence great "
        text = (words * (self.prompt_bytes // len(words) + 1))[: self.prompt_bytes]
        message = {"role": "user", "content": text}
        return json.dumps(
            {"model": MODEL, "messages": [message], "max_tokens": self.tokens, "stream": True}
        )


def reference(path: ServingPath, shape: Shape) -> int:
    """Return the checksum of an engine's own answer; end the program if the answer is wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", path.ports[0], timeout=shape.seconds + 30)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", shape.body, _HEADERS)
        answer = connection.getresponse()
        body = answer.read()
    try:
        if answer.status != 200:
            raise AnswerError(f"status {answer.status}: {body[:300]!r}")
        check_tokens(body, shape.tokens)
    except AnswerError as error:
        sys.exit(f"the answer of the engine itself is wrong: {error}")
    return checksum_of(body)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One load over one path.

    Attributes:
        measured: by the clients, in the window.
        seconds: the length of the window.
        front, back, engines: processor seconds in the window.
        front_bytes, back_bytes: resident memory at the end of the window.
    """

    measured: Measured
    seconds: float
    front: float
    back: float
    engines: float
    front_bytes: int
    back_bytes: int

    def values(self) -> dict[str, float]:
        """Return the figures of a row: times in ms, costs in µs, memory in bytes."""
        chunks = self.measured.chunks or float("nan")
        requests = self.measured.requests or float("nan")
        figures = {
            "chunks/s": self.measured.chunks / self.seconds,
            "requests/s": self.measured.requests / self.seconds,
            "answers": self.measured.answers,
            "front a chunk": self.front / chunks * 1e6,
            "back a chunk": self.back / chunks * 1e6,
            "engines a chunk": self.engines / chunks * 1e6,
            "front a request": self.front / requests * 1e6,
            "back a request": self.back / requests * 1e6,
            "front bytes": self.front_bytes,
            "back bytes": self.back_bytes,
        }
        for name in ("first", "gaps", "total"):
            times = getattr(self.measured, name)
            figures |= {
                f"{name} p50": percentile(times, 0.5),
                f"{name} p99": percentile(times, 0.99),
            }
        return figures


def run(
    path: ServingPath, shape: Shape, *, streams: int, seconds: float, clients: int,
    checksum: int | None, scrapes_a_second: float = 0,
) -> Run:  # fmt: skip
    """Send a load over a path, and measure it in a window after all streams have started.

    Args:
        path: the path.
        shape: the requests.
        streams: the number of streams.
        seconds: the length of the window.
        clients: the number of client processes.
        checksum: the checksum of each answer, if the path keeps all bytes; None: unknown.
        scrapes_a_second: of each page of the path, at the same time.

    Raises:
        FailedAnswersError: An answer was wrong or missing.
    """
    clients = min(clients, streams)
    checksum = checksum if path.same_bytes else None
    with contextlib.ExitStack() as stack:
        command = [sys.executable, str(_CLIENT)]
        processes = [stack.enter_context(_client(command)) for _ in range(clients)]
        for process in processes:
            _line(process)
        begin = time.monotonic() + 0.2
        spread = min(shape.seconds, 2.0)
        window = (begin + spread + _SETTLES, begin + spread + _SETTLES + seconds)
        shares = [streams // clients + (i < streams % clients) for i in range(clients)]
        for number, (process, share) in enumerate(zip(processes, shares, strict=True)):
            turn = number % len(path.ports)
            load = Load(
                ports=path.ports[turn:] + path.ports[:turn],
                body=shape.body, tokens=shape.tokens, checksum=checksum, streams=share,
                begin=begin, spread=spread, window=window, within=shape.seconds + 60,
                keep_alive=shape.keep_alive,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(json.dumps(dataclasses.asdict(load)) + "\n")
            process.stdin.flush()
        if scrapes_a_second:
            stack.enter_context(_scraping(path.pages, scrapes_a_second))
        groups = (path.front, path.back, path.engines)
        time.sleep(max(0, window[0] - time.monotonic()))
        before = [cpu_seconds(group) for group in groups]
        while (left := window[1] - time.monotonic()) > 0:
            if left < seconds - 1:
                say(f"{left:.0f} s left")
            time.sleep(min(left, _REPORTS))
        after = [cpu_seconds(group) for group in groups]
        front_bytes, back_bytes = resident_bytes(path.front), resident_bytes(path.back)
        measured = Measured()
        for process in processes:
            measured.add(Measured.from_json(_line(process)))
    if measured.failed:
        faults = "\n".join(f"    {fault}" for fault in measured.faults)
        total = measured.failed + measured.answers
        raise FailedAnswersError(f"{measured.failed} of {total} answers failed:\n{faults}")
    front, back, engines = (two - one for one, two in zip(before, after, strict=True))
    return Run(
        measured=measured, seconds=seconds, front=front, back=back, engines=engines,
        front_bytes=front_bytes, back_bytes=back_bytes,
    )  # fmt: skip


@contextlib.contextmanager
def _client(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.kill()
            process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit("a client process has ended: its error is above")
    return line


@contextlib.contextmanager
def _scraping(ports: list[int], a_second: float) -> Iterator[None]:
    """Scrape each page at this rate, with Prometheus' headers, one thread for each page."""
    ended = threading.Event()

    def scrape(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        due = time.monotonic()
        with contextlib.closing(connection):
            while not ended.wait(max(0, due - time.monotonic())):
                connection.request("GET", "/metrics", headers=_SCRAPE)
                connection.getresponse().read()
                due += 1 / a_second

    threads = [threading.Thread(target=scrape, args=(port,), daemon=True) for port in ports]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
