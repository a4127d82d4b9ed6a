"""Refreshes of the page: read all sources, one after the other, in a thread of their own.

A source may hang, on a file system or in a callback. Then the page is served without the families
of that source: its thread is left behind, and another thread continues the refresh.

One thread reads all sources, because a handover to a thread for each source would cost as much as
reading a source in which nothing changed.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from dynamometer.metrics.guarded_source import GuardedSource, SourceError, SourceResult
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Starting the thread that takes over needs a moment.
_LEAST_WAIT_SECONDS: Final = 0.01


class PageSources(Protocol):
    """The sources of a page, and what they returned. One thread at a time calls these methods."""

    def sources(self) -> Sequence[GuardedSource]:
        """Return the sources, in the order in which they are read."""

    def update(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        """Store what one source returned."""

    def merge(self, sources: Sequence[GuardedSource]) -> None:
        """Merge the families of all sources; each was read."""


class _Submitted(Generic[Result]):
    """A call to make at the end of a refresh, and the future of its result."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # no waiter cancels it for the others

    def run(self) -> None:
        """Call the function; whoever waits for the future gets its result or its error."""
        try:
            self.future.set_result(self._function())
        except Exception as error:  # noqa: BLE001, RUF100  # raised where the future is awaited
            self.future.set_exception(error)


@dataclass(frozen=True)
class _Running:
    """A refresh that is running.

    Attributes:
        sources: all sources of the page.
        unread: the sources that are not read yet.
        submitted: the calls to make at the end.
    """

    sources: Sequence[GuardedSource]
    unread: deque[GuardedSource]
    submitted: Sequence[_Submitted[Any]]


class Refreshes:
    """Refresh one page, one refresh at a time; calls submitted during a refresh share the next one.

    No waiter owns the refresh that is running: each thread or task that waits for any refresh calls
    `give_up_late` after `wait_seconds`. So a waiter that stopped (an interrupt, a cancelled
    scrape, a closed server) delays the others by the deadline at most.
    """

    def __init__(
        self, page: PageSources, *, name: str, deadline: float, next_deadline: float
    ) -> None:
        """Make the refreshes of a page; the first `submit` starts the thread.

        Args:
            page: has the sources.
            name: of the threads.
            deadline: the time after which the source that is being read is given up, seconds.
            next_deadline: the same for each further source that hangs, seconds.
        """
        self._page = page
        self._name = name
        self._deadline = deadline
        self._next_deadline = next_deadline
        renew_in_child(self)

    def renew(self) -> None:
        """Start with no refresh running: a child of `fork` has none of its parent's threads."""
        self._waiting: queue.SimpleQueue[_Submitted[Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # The lock guards these: the one thread that may read, what it reads, and until when.
        self._thread: threading.Thread | None = None
        self._reading: tuple[_Running, GuardedSource] | None = None
        self._late_at = math.inf

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Refresh the page after the refresh that is running, if any, then call `function`.

        Args:
            function: called by the thread that read the last source.

        Returns:
            The future of the call's result.

        Raises:
            RuntimeError: The process cannot start one more thread.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # its start failed
                self._thread = self._new_thread(self._run)
                self._thread.start()
        submitted = _Submitted(function)
        self._waiting.put(submitted)
        return submitted.future

    @property
    def in_source(self) -> bool:
        """True in the thread that reads the sources: a source called the page."""
        return threading.current_thread() is self._thread

    def wait_seconds(self) -> float:
        """Return how long to wait for a refresh until `give_up_late` is due."""
        return max(_LEAST_WAIT_SECONDS, min(self._late_at - time.monotonic(), self._deadline))

    def give_up_late(self) -> None:
        """Give up the source that is being read, if its time is over.

        This only starts the thread that takes over, so that an interrupt cannot stop it halfway.
        """
        if time.monotonic() >= self._late_at:
            self._new_thread(self._take_over).start()

    def _new_thread(self, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=target, name=self._name, daemon=True)

    def _take_over(self) -> None:
        with self._lock:
            if self._reading is None or time.monotonic() < self._late_at:
                return  # the source answered, or another thread has taken over
            running, source = self._reading
            self._reading = None
            self._late_at = math.inf
            self._thread = threading.current_thread()
        self._store(source, _LATE)
        if self._read(running, self._next_deadline):
            self._run()

    def _run(self) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():
                return  # an interrupt hid that this thread had started
        running = self._next()
        while self._read(running, self._deadline):
            running = self._next()

    def _next(self) -> _Running:
        """Wait for the next refresh that is submitted."""
        submitted = [self._waiting.get()]
        with suppress(queue.Empty):
            while True:
                submitted.append(self._waiting.get_nowait())
        sources = self._page.sources()
        return _Running(sources, deque(sources), submitted)

    def _read(self, running: _Running, deadline: float) -> bool:
        """Read the unread sources; return False when another thread has taken over meanwhile."""
        late_at = time.monotonic() + deadline
        while running.unread:
            source = running.unread.popleft()
            with self._lock:
                self._reading = (running, source)
                self._late_at = late_at
            result = _LATE if source.busy else source.read()
            with self._lock:
                if self._thread is not threading.current_thread():
                    return False
                self._reading = None
                self._late_at = math.inf
            self._store(source, result)
        try:
            self._page.merge(running.sources)
        except Exception:
            logger.exception("the page cannot be merged")  # our fault
        for submitted in running.submitted:
            submitted.run()
        return True

    def _store(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        try:
            self._page.update(source, result)
        except Exception:
            logger.exception(
                "the families of a source cannot be used"
            )  # our fault, not the source's


_LATE = SourceError("timeout", "the source did not answer in time")
