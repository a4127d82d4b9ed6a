"""A load of streams for `make bench-serving`, in a process of its own.

The process reads one JSON line with the fields of `Load`, sends the requests, checks each answer,
and prints one JSON line with the fields of `Measured`. All times are of the system's monotonic
clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import uvloop
from serving_answers import fault_of

_EVENT = b"data: {"
_END = b"\r\n0\r\n\r\n"
_TAIL = len(_EVENT) - 1
assert len(_END) == len(_EVENT)
_MOST_FAULTS = 5
MICROSECONDS = 10  # the width of a bucket of times


@dataclass(frozen=True, kw_only=True)
class Load:
    """Streams that run at the same time, each one request after another.

    Attributes:
        ports: loopback ports, used in turn.
        body: the body of each request.
        tokens: the tokens that each answer must have.
        checksum: the checksum that each answer must have; None: check the tokens only.
        streams: the number of streams.
        begin: the time of the first request; the streams start over `spread` seconds.
        window: the begin and the end of the measurement. No request starts after the end.
        within: seconds that one answer may take.
        keep_alive: send the requests of a stream over one connection.
        most: the largest number of requests of a stream; None: no limit.
    """

    ports: list[int]
    body: str
    tokens: int
    checksum: int | None
    streams: int
    begin: float
    spread: float
    window: tuple[float, float]
    within: float
    keep_alive: bool = False
    most: int | None = None


@dataclass
class Measured:
    """The measurements of a load.

    Attributes:
        chunks: events in the window.
        requests: answers that ended in the window.
        answers: complete and correct answers, also those outside of the window.
        failed: all other answers.
        faults: the first reasons of failed answers.
        first: times from a request (with its connection) to its first event, by bucket.
        gaps: times between reads with events.
        total: times from a request to the end of its answer.
    """

    chunks: int = 0
    requests: int = 0
    answers: int = 0
    failed: int = 0
    faults: list[str] = field(default_factory=list)
    first: Counter[int] = field(default_factory=Counter)
    gaps: Counter[int] = field(default_factory=Counter)
    total: Counter[int] = field(default_factory=Counter)

    def add(self, other: Measured) -> None:
        for part in dataclasses.fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, part.name, mine + theirs)

    def fail(self, fault: str) -> None:
        self.failed += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(fault)

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Measured:
        values = json.loads(text)
        for name in ("first", "gaps", "total"):
            values[name] = Counter({int(key): count for key, count in values[name].items()})
        return cls(**values)


def percentile(times: Counter[int], share: float) -> float:
    """Return the time in ms that this share of the times does not exceed; NaN without any."""
    left = share * times.total()
    for bucket in sorted(times):
        left -= times[bucket]
        if left <= 0:
            return bucket * MICROSECONDS / 1e3
    return float("nan")


def _bucket(seconds: float) -> int:
    return round(seconds * 1e6 / MICROSECONDS)


class _Connection(asyncio.Protocol):
    """One connection, which carries one answer at a time.

    Attributes:
        ended: the result of the current request: None for a complete answer, or the fault.
    """

    def __init__(self, window: tuple[float, float], measured: Measured) -> None:
        self._window = window
        self._measured = measured
        self._transport: asyncio.Transport | None = None
        self.parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, begun: float) -> asyncio.Future[str | None]:
        self.ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.parts, self._tail, self._last = [], b"", 0.0
        self._begun = begun
        assert self._transport is not None
        self._transport.write(request)
        return self.ended

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        measured = now >= self._window[0] and now < self._window[1]
        text = self._tail + data  # the tail is shorter than a pattern: nothing counts twice
        found = text.count(_EVENT)
        if found:
            if measured:
                self._measured.chunks += found
                if self._last:
                    self._measured.gaps[_bucket(now - self._last)] += 1
                else:
                    self._measured.first[_bucket(now - self._begun)] += 1
            self._last = now
        if not self.parts and not text.startswith(b"HTTP/1.1 200 "[: len(text)]):
            self._end(f"the answer begins with {text[:300]!r}")
            return
        self.parts.append(data)
        self._tail = text[-_TAIL:]
        if text.endswith(_END):
            if measured:
                self._measured.requests += 1
                self._measured.total[_bucket(now - self._begun)] += 1
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"the connection was closed in an answer ({error})")

    def _end(self, fault: str | None) -> None:
        if not self.ended.done():
            self.ended.set_result(fault)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort() if not self.ended.done() else self._transport.close()


async def run(load: Load) -> Measured:
    """Send the requests, and return the measurements when the last answer has ended."""
    measured = Measured()
    kept = b"keep-alive" if load.keep_alive else b"close"
    body = load.body.encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nConnection: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (kept, len(body), body)
    )

    async def stream(number: int) -> None:
        loop, turn = asyncio.get_running_loop(), number
        connection: _Connection | None = None
        starts = load.begin + number * load.spread / load.streams
        await asyncio.sleep(max(0, starts - time.monotonic()))
        for _ in itertools.count() if load.most is None else range(load.most):
            begun = time.monotonic()
            if begun >= load.window[1]:
                break
            try:
                if connection is None or not connection.open:
                    port, turn = load.ports[turn % len(load.ports)], turn + 1
                    _, connection = await loop.create_connection(
                        lambda: _Connection(load.window, measured), "127.0.0.1", port
                    )
                async with asyncio.timeout(load.within):
                    fault = await connection.send(request, begun)
            except TimeoutError:
                fault = f"the answer was not complete after {load.within:.0f} s"
            except OSError as error:
                fault = f"no connection: {error}"
                await asyncio.sleep(0.1)
            if fault is None and connection is not None:
                fault = fault_of(b"".join(connection.parts), load.tokens, load.checksum)
            if fault is None:
                measured.answers += 1
            else:
                measured.fail(fault)
            if connection is not None and (fault is not None or not load.keep_alive):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(stream(number))
    return measured


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print("ready", flush=True)
    load = Load(**json.loads(sys.stdin.readline()))
    print(uvloop.run(run(load)).to_json(), flush=True)


if __name__ == "__main__":
    main()
