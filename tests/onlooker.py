"""A look at a worker every 50 ms, while a test ends and restarts processes."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dynamometer.exposition.cumulative import is_cumulative, readings_of
from parsing import PageParser
from stack import Worker, http


@dataclass
class Look:
    """One page and one health answer, and when they were requested."""

    at: float
    page: bytes
    health: int


@dataclass
class Onlooker:
    """A thread that fetches the page and the health answer of a worker every 50 ms."""

    worker: Worker
    looks: list[Look] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Onlooker]:
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=(ended,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join(30)

    def _look(self, ended: threading.Event) -> None:
        while not ended.wait(0.05):
            at = time.monotonic()
            try:
                page = http(f"{self.worker.system_url}/metrics")
                health = http(f"{self.worker.system_url}/health")
            except OSError as error:
                self.faults.append(repr(error))
                return
            if page.status != 200:
                self.faults.append(f"the page answers {page.status}")
            self.looks.append(Look(at, page.body, health.status))

    def total(self, name: str) -> float:
        """Return the sum of the samples of a name on the last page; -1 without any."""
        assert not self.faults
        return total(self.looks[-1].page, name) if self.looks else -1

    def pages_since(self, at: float) -> list[bytes]:
        return [look.page for look in self.looks if look.at >= at]

    def not_ready_after(self, at: float) -> float:
        """Return the seconds from `at` until a health answer of 503 was requested."""
        return next(look.at for look in self.looks if look.at >= at and look.health == 503) - at


def total(page: bytes, name: str) -> float:
    """Return the sum of the samples of a name; -1 without any."""
    values = re.findall(rf"^{re.escape(name)}\{{.*\}} (\S+)$", page.decode(), re.MULTILINE)
    return sum(map(float, values)) if values else -1


def check_totals(looks: Sequence[Look]) -> None:
    """Check that no series is on a page twice, and that no total disappears or falls."""
    parser, label_sets = PageParser(), dict[str, str]()
    before: dict[str, float] = {}
    for look in looks:
        lines = [line for line in look.page.splitlines() if line and not line.startswith(b"#")]
        series = [line.rpartition(b" ")[0] for line in lines]
        assert len(set(series)) == len(series)
        now: dict[str, float] = {}
        for family in parser.parse(look.page):
            if is_cumulative(family.metadata):
                for reading in readings_of(family, label_sets).values():
                    now |= reading.counts | reading.sums
        fallen = {
            text: (before[text], now.get(text))
            for text in before
            if now.get(text, -1) < before[text]
        }
        assert not fallen, list(fallen.items())[:5]
        before = now
