"""Refreshes of the page: the page's thread reads all sources, one after the other.

A source may hang in a file system or in a callback. After its deadline, the thread that reads it is
abandoned, and another thread continues the refresh without the families of that source.

A thread for each source would be more expensive: to switch to another thread costs as much as to
read a source in which nothing changed.
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

# Time for the thread that continues the refresh to start.
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
    """The methods of a page that a refresh needs; one thread at a time calls these methods."""

    def sources(self) -> Sequence[GuardedSource]:
        """Return the sources in the order in which they are read."""

    def update(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        """Store the result of reading one source."""

    def merge(self, sources: Sequence[GuardedSource]) -> None:
        """Merge the families of all sources after each source was read."""

    def answer(self, request: PageRequest) -> bytes:
        """Return the bytes of the merged page."""


@dataclass(frozen=True)
class _Submission:
    """A call of `Refreshes.submit` that waits for its refresh.

    Attributes:
        request: the page to render after the refresh, if any.
        body: the future of the rendered page.
    """

    request: PageRequest | None
    body: Future[bytes] = field(default_factory=Future)


@dataclass(frozen=True)
class _Refresh:
    """A refresh that is running.

    Attributes:
        sources: all sources of the page.
        unread: the sources that are not read yet.
        submissions: the calls that wait for this refresh.
    """

    sources: Sequence[GuardedSource]
    unread: deque[GuardedSource]
    submissions: Sequence[_Submission]


class Refreshes:
    """The refreshes of one page, which never overlap.

    All calls that arrive during a refresh share the next refresh. No caller owns a refresh: each
    caller that waits, for this refresh or the next, enforces the deadline with `wait_seconds` and
    `give_up_late`. So a caller that stops waiting (an interrupt, a cancelled scrape, a closed
    server) delays the others by the deadline at most.
    """

    def __init__(
        self, page: RefreshedPage, *, name: str, deadline: float, next_deadline: float
    ) -> None:
        """Store the arguments; the first `submit` starts the thread.

        Args:
            page: the page to refresh.
            name: the name of the threads.
            deadline: the seconds after which the source that is being read is skipped.
            next_deadline: the deadline in seconds of each further source that hangs.
        """
        self._page = page
        self._name = name
        self._deadline = deadline
        self._next_deadline = next_deadline
        renew_in_child(self)

    def renew(self) -> None:
        """Forget the running refresh: the child of a fork does not have its parent's threads."""
        self._waiting: queue.SimpleQueue[_Submission] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # The lock guards these: the only thread that may read sources; the refresh and the source
        # that it reads; the time after which that source is skipped.
        self._thread: threading.Thread | None = None
        self._reading: tuple[_Refresh, GuardedSource] | None = None
        self._deadline_at = math.inf

    def submit(self, request: PageRequest | None) -> Future[bytes]:
        """Start a refresh after the running one, if any; then render the page.

        Args:
            request: the page to render; None to refresh only, with an empty result.

        Returns:
            The future of the rendered page.

        Raises:
            RuntimeError: The process cannot start another thread.
        """
        submission = _Submission(request)
        submission.body.set_running_or_notify_cancel()  # no caller can cancel the future
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # or its start failed
                self._thread = self._new_thread(self._run)
                self._thread.start()
        self._waiting.put(submission)
        return submission.body

    @property
    def called_by_source(self) -> bool:
        """True if a source makes this call: the current thread is the one that reads sources."""
        return threading.current_thread() is self._thread

    def wait_seconds(self) -> float:
        """Return the seconds to wait for a refresh before `give_up_late` is called."""
        return max(_LEAST_WAIT_SECONDS, min(self._deadline_at - time.monotonic(), self._deadline))

    def give_up_late(self) -> None:
        """Skip the source that is being read, if its deadline has passed.

        Another thread continues the refresh, so that an interrupt of the caller cannot stop it.
        """
        if time.monotonic() >= self._deadline_at:
            self._new_thread(self._take_over).start()

    def _new_thread(self, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=target, name=self._name, daemon=True)

    def _take_over(self) -> None:
        with self._lock:
            if self._reading is None or time.monotonic() < self._deadline_at:
                return  # the source answered, or another thread has taken over
            refresh, source = self._reading
            self._reading = None
            self._deadline_at = math.inf
            self._thread = threading.current_thread()
        self._store(source, _LATE)
        if self._read(refresh, self._next_deadline):
            self._run()

    def _run(self) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():
                return  # an interrupt in `submit` made a later call start another thread
        refresh = self._next_refresh()
        while self._read(refresh, self._deadline):
            refresh = self._next_refresh()

    def _next_refresh(self) -> _Refresh:
        """Wait for a submission, and return a refresh for all submissions that wait."""
        submissions = [self._waiting.get()]
        with suppress(queue.Empty):
            while True:
                submissions.append(self._waiting.get_nowait())
        sources = self._page.sources()
        return _Refresh(sources, deque(sources), submissions)

    def _read(self, refresh: _Refresh, deadline: float) -> bool:
        """Read the unread sources, merge the page, and answer the submissions; return True.

        Return False without an answer if another thread has taken over the refresh meanwhile.
        """
        deadline_at = time.monotonic() + deadline
        while refresh.unread:
            source = refresh.unread.popleft()
            with self._lock:
                self._reading = (refresh, source)
                self._deadline_at = deadline_at
            result = _LATE if source.busy else source.read()
            with self._lock:
                if self._thread is not threading.current_thread():
                    return False
                self._reading = None
                self._deadline_at = math.inf
            self._store(source, result)
        try:
            self._page.merge(refresh.sources)
        except Exception:
            logger.exception("the page cannot be merged")  # a fault of this package
        for submission in refresh.submissions:
            self._answer(submission)
        return True

    def _store(self, source: GuardedSource, result: SourceResult | SourceError) -> None:
        try:
            self._page.update(source, result)
        except Exception:
            logger.exception("the families of a source cannot be used")  # a fault of this package

    def _answer(self, submission: _Submission) -> None:
        try:
            request = submission.request
            submission.body.set_result(b"" if request is None else self._page.answer(request))
        except Exception as error:  # noqa: BLE001, RUF100  # raised where the future is awaited
            submission.body.set_exception(error)
