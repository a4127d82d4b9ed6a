"""Comparison of the pages of the stack with the requests that were sent."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.parse
from collections.abc import Iterator, Mapping

import psutil
from counting import Client, Counts, Got, Range, Request, unexpected

from stack import Stack, Worker, eventually

MODEL = "the model of the stack"  # replaced by the path of the model
USAGE = {"include_usage": True}


class Truth:
    """The stack, and the counts on its pages after the previous row."""

    def __init__(self, stack: Stack) -> None:
        assert stack.worker is not None
        self.stack = stack
        self.worker: Worker = stack.worker
        self.before = Counts()
        self._last: Counts | None = None

    def now(self) -> Counts:
        return Counts.of(self.stack.frontend_url, self.worker.system_url)

    def ready(self) -> None:
        """Start a row: take the counts that the previous row ended with.

        After a row without an expectation, wait until the stack is idle and no counter changes.
        """
        before, self._last = self._last, None
        while before is None:
            first = self.now()
            time.sleep(0.5)  # SGLang reports a request within this time, without an event
            if self.now().rising == first.rising and not any(first.gauges.values()):
                before = first
        self.before = before

    def expect(self, adds: Mapping[str, Range]) -> dict[str, float]:
        """Wait until the pages have increased by exactly `adds`, and return the increases."""
        left: Mapping[str, object] = {}

        def equal() -> bool:
            nonlocal left
            now = self.now()
            left = unexpected(now.since(self.before), adds) | {
                name: value for name, value in now.gauges.items() if value
            }
            if not left:
                self._last = now
            return not left

        with contextlib.suppress(AssertionError):
            eventually(equal, within=15, what="the pages are as expected")
        assert self._last is not None, left
        return self._last.since(self.before)

    def client(self, request: Request) -> Client:
        return Client(self.stack.frontend_url, request)

    def of(self, request: Request) -> Request:
        """Return the request with the model of this stack."""
        named = request.option.get("model") == MODEL
        body = {**request.option, "model": str(self.stack.model)} if named else request.body
        return request.but(body=body)

    def usage(self, request: Request) -> Got | None:
        """Return the usage event that the frontend removes, requested from the engine itself."""
        if not request.hides_usage or not request.choices or not request.sent:
            return None
        asked = request.but(body={**request.option, "stream_options": USAGE})
        answer = Client(self.worker.engine_url, asked).read()
        events = answer.body.split(b"\n\n")
        (event,) = [one for one in events if b'"choices":[],' in one]
        return Got(200, event + b"\n\n")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend the engine's scheduler while the context is open."""
        (scheduler,) = [
            process
            for process in self.worker.engine.children(recursive=True)
            if "sglang::scheduler" in " ".join(process.cmdline())
        ]
        scheduler.suspend()
        try:
            yield
        finally:
            scheduler.resume()
        assert scheduler.status() != psutil.STATUS_STOPPED

    def wait(self, what: str, **gauges: float) -> None:
        """Wait until gauges, named without their prefix, have these values."""

        def such() -> bool:
            now = self.now().gauges
            found = {
                short: sum(v for name, v in now.items() if name.endswith(short)) for short in gauges
            }
            return found == gauges

        eventually(such, within=15, what=what)

    def wait_for(self, name: str, number: int) -> None:
        """Wait until a counter has increased by `number`."""
        eventually(
            lambda: self.now().since(self.before).get(name) == number,
            within=15,
            what=f"{name} rises by {number}",
        )

    @contextlib.contextmanager
    def raw(self, content: bytes) -> Iterator[socket.socket]:
        """Open a connection, and send `content`."""
        address = urllib.parse.urlsplit(self.stack.frontend_url)
        where = address.hostname, address.port
        with socket.create_connection(where, timeout=30) as connection:
            connection.sendall(content)
            yield connection
