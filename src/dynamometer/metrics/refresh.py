"""Refreshes of the page: read all sources, one after the other, in the page's thread.

A source may hang, on a file system or in a callback. After its deadline, the page is served without
the families of that source: its thread is abandoned, and another thread continues the refresh.

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
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from dynamometer.exposition.filters import EVERYTHING, Selection
from dynamometer.metrics.guarded_source import GuardedSource, SourceError, SourceResult
from dynamometer.process.forks import renew_in_child

logger = logging.getLogger(__name__)

# Leaves the thread that takes over the time to start.
_LEAST_WAIT_SECONDS: Final = 0.01
_LATE: Final = SourceError("timeout", "the source did not answer in time")


class PageRequest(NamedTuple):
    """A request for the bytes of a page.

    Attributes:
        selection: the families to render.
        openmetrics: True for OpenMetrics 1.0.0, False for text 0.0.4.
        gzip: True for a compressed page.
    """

    selection: Selection = EVERYTHING
    openmetrics: bool = False
    gzip: bool = False


class RefreshedPage(Protocol):
    """A page as its refreshes see it. One thread at a time calls these methods."""

    def sources(self) -> Sequence[GuardedSource]:
        """Return the sources in the order in which they are read."""

    def update(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        """Store the result of reading one source."""

    def merge(self, sources: Sequence[GuardedSource]) -> None:
        """Merge the families of all sources, each of which was read."""

    def answer(self, request: PageRequest) -> bytes:
        """Return the bytes of the merged page."""


@dataclass(frozen=True)
class _Submitted:
    """A caller that waits for a refresh.

    Attributes:
        request: the page to render after the refresh, if any.
        body: the future of the rendered page.
    """

    request: PageRequest | None
    body: Future[bytes] = field(default_factory=Future)


@dataclass(frozen=True)
class _Running:
    """A refresh that is running.

    Attributes:
        sources: all sources of the page.
        unread: the sources that are not read yet.
        submitted: the callers that wait for this refresh.
    """

    sources: Sequence[GuardedSource]
    unread: deque[GuardedSource]
    submitted: Sequence[_Submitted]


class Refreshes:
    """Refresh one page, one refresh at a time; callers that arrive meanwhile share the next one.

    No caller owns the refresh that is running: each thread or task that waits for any refresh calls
    `give_up_late` after `wait_seconds`. So a caller that stopped waiting (an interrupt, a cancelled
    scrape, a closed server) delays the others by the deadline at most.
    """

    def __init__(
        self, page: RefreshedPage, *, name: str, deadline: float, next_deadline: float
    ) -> None:
        """Store the arguments; the first `submit` starts the thread.

        Args:
            page: the page to refresh.
            name: the name of the threads.
            deadline: the seconds after which the source that is being read is skipped.
            next_deadline: the same for each further source that hangs.
        """
        self._page = page
        self._name = name
        self._deadline = deadline
        self._next_deadline = next_deadline
        renew_in_child(self)

    def renew(self) -> None:
        """Forget the refresh that is running: a child of fork has no thread of its parent."""
        self._waiting: queue.SimpleQueue[_Submitted] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # The lock guards these: the one thread that may read, its refresh and source, its deadline.
        self._thread: threading.Thread | None = None
        self._reading: tuple[_Running, GuardedSource] | None = None
        self._late_at = math.inf

    def submit(self, request: PageRequest | None) -> Future[bytes]:
        """Refresh the page after the refresh that is running, if any, then render the page.

        Args:
            request: the page that the thread renders; None renders nothing, the result is empty.

        Returns:
            The future of the rendered page.

        Raises:
            RuntimeError: The process cannot start another thread.
        """
        submitted = _Submitted(request)
        submitted.body.set_running_or_notify_cancel()  # no caller can cancel the future
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # its start failed
                self._thread = self._new_thread(self._run)
                self._thread.start()
        self._waiting.put(submitted)
        return submitted.body

    @property
    def in_source(self) -> bool:
        """True in the thread that reads the sources: a source called the page."""
        return threading.current_thread() is self._thread

    def wait_seconds(self) -> float:
        """Return the seconds to wait for a refresh before `give_up_late` is called."""
        return max(_LEAST_WAIT_SECONDS, min(self._late_at - time.monotonic(), self._deadline))

    def give_up_late(self) -> None:
        """Skip the source that is being read, if its deadline has passed.

        The caller only starts the thread that takes over: an interrupt cannot stop that thread.
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
                return  # an interrupt in `submit` made a later call start another thread
        running = self._next()
        while self._read(running, self._deadline):
            running = self._next()

    def _next(self) -> _Running:
        """Wait for a caller, and return the refresh for all callers that wait."""
        submitted = [self._waiting.get()]
        with suppress(queue.Empty):
            while True:
                submitted.append(self._waiting.get_nowait())
        sources = self._page.sources()
        return _Running(sources, deque(sources), submitted)

    def _read(self, running: _Running, deadline: float) -> bool:
        """Read the unread sources, and answer the callers.

        Return False, without answers, if another thread has taken over meanwhile.
        """
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
            logger.exception("the page cannot be merged")  # a fault of this package
        for submitted in running.submitted:
            self._answer(submitted)
        return True

    def _store(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        try:
            self._page.update(source, result)
        except Exception:
            logger.exception("the families of a source cannot be used")  # a fault of this package

    def _answer(self, submitted: _Submitted) -> None:
        try:
            request = submitted.request
            submitted.body.set_result(b"" if request is None else self._page.answer(request))
        except Exception as error:  # noqa: BLE001, RUF100  # raised where the future is awaited
            submitted.body.set_exception(error)
