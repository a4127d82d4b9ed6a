"""Refreshes of the page: all sources asked, one after the other, in a thread of their own.

A source may hang: on a file system, in a callback. The page then goes on without its families: the
thread is left behind with the source, and another thread goes on with the refresh.

One thread asks all sources: a thread for each would cost a handover for each, as much as a source
in which nothing changed.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from dynamometer.metrics.collection import Answer, Collection, SourceError
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

Finish = Callable[[], None]

# Starting the thread that takes over needs a moment.
_LEAST_WAIT_SECONDS: Final = 0.01


class PageSources(Protocol):
    """The page, as its refreshes see it. One thread at a time calls these."""

    def asked(self) -> Sequence[Collection]:
        """Return the sources, in the order in which they are asked."""

    def answered(self, collection: Collection, answer: Answer) -> None:
        """Take the answer of one source."""

    def merge(self, collections: Sequence[Collection]) -> None:
        """Merge what the sources answered: all of them were asked."""


@dataclass(frozen=True)
class _Running:
    """A refresh that is running.

    Attributes:
        asked: all of its sources.
        left: those that were not asked yet.
        finishes: called at the end.
    """

    asked: Sequence[Collection]
    left: deque[Collection]
    finishes: Sequence[Finish]


class Refreshes:
    """The refreshes of one page, one at a time; all that are wanted during one share the next.

    Nobody owns the refresh that is running: each thread or task that waits for any refresh calls
    `give_up_late` when `wait_seconds` are over. So one that stopped waiting (an interrupt, a
    cancelled scrape, a closed server) holds up nobody for longer than the deadline.
    """

    def __init__(
        self, page: PageSources, *, name: str, deadline: float, next_deadline: float
    ) -> None:
        """No thread is started yet.

        Args:
            page: whose sources are asked.
            name: of the threads.
            deadline: how long a refresh may take until the source that is being asked is given
                up, seconds.
            next_deadline: how long until the next one is, seconds.
        """
        self._page = page
        self._name = name
        self._deadline = deadline
        self._next_deadline = next_deadline
        renew_in_child(self)

    def renew(self) -> None:
        """Start with no refresh running: a child of `fork` has none of its parent's threads."""
        self._waiting: queue.SimpleQueue[Finish] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # The lock guards these: the one thread that may ask, what it asks now, and until when.
        self._thread: threading.Thread | None = None
        self._asking: tuple[_Running, Collection] | None = None
        self._late_at = math.inf

    def begin(self, finish: Finish) -> None:
        """Refresh the page once the refresh that is running, if any, is over.

        Args:
            finish: called at the end, by the thread that asked the last source.

        Raises:
            RuntimeError: The process cannot start one more thread.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # its start failed
                self._thread = self._new_thread(self._run)
                self._thread.start()
        self._waiting.put(finish)

    @property
    def in_source(self) -> bool:
        """Whether the calling thread is the one that asks: a source called back."""
        return threading.current_thread() is self._thread

    def wait_seconds(self) -> float:
        """Return how long to wait for a refresh until `give_up_late` is due."""
        return max(_LEAST_WAIT_SECONDS, min(self._late_at - time.monotonic(), self._deadline))

    def give_up_late(self) -> None:
        """Leave the source behind that is being asked, if its time is over.

        Only starts a thread, which takes over: an interrupt cannot stop it halfway.
        """
        if time.monotonic() >= self._late_at:
            self._new_thread(self._take_over).start()

    def _new_thread(self, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=target, name=self._name, daemon=True)

    def _take_over(self) -> None:
        with self._lock:
            if self._asking is None or time.monotonic() < self._late_at:
                return  # the source answered, or another thread has taken over
            running, collection = self._asking
            self._asking = None
            self._late_at = math.inf
            self._thread = threading.current_thread()
        self._take(collection, _LATE)
        if self._ask(running, self._next_deadline):
            self._run()

    def _run(self) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():
                return  # an interrupt hid that this thread had started
        running = self._next()
        while self._ask(running, self._deadline):
            running = self._next()

    def _next(self) -> _Running:
        """Wait until a refresh is wanted."""
        finishes = [self._waiting.get()]
        with suppress(queue.Empty):
            while True:
                finishes.append(self._waiting.get_nowait())
        asked = self._page.asked()
        return _Running(asked, deque(asked), finishes)

    def _ask(self, running: _Running, deadline: float) -> bool:
        """Ask the sources that are left; False where another thread has taken over meanwhile."""
        late_at = time.monotonic() + deadline
        while running.left:
            collection = running.left.popleft()
            with self._lock:
                self._asking = (running, collection)
                self._late_at = late_at
            answer = _LATE if collection.busy else collection.ask()
            with self._lock:
                if self._thread is not threading.current_thread():
                    return False
                self._asking = None
                self._late_at = math.inf
            self._take(collection, answer)
        steps: list[Finish] = [partial(self._page.merge, running.asked), *running.finishes]
        for step in steps:
            try:
                step()
            except Exception:
                logger.exception("a scrape failed")  # ours, not a source's
        return True

    def _take(self, collection: Collection, answer: Answer) -> None:
        try:
            self._page.answered(collection, answer)
        except Exception:
            logger.exception("an answer of a source was lost")  # ours, not the source's


_LATE = SourceError("timeout", "no answer in time")
