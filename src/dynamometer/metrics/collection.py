"""Asking a source for its families, in a thread of its own and with a deadline.

A source may hang: on a file system, in a callback. It then loses its own families, and nothing
else: neither the page nor the end of the process waits for its thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dynamometer.exposition.families import Family
from dynamometer.metrics.sources import MetricsSource


class SourceError(Exception):
    """A source has no families to show now; `reason` is what is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Collection:
    """One source, asked again and again, by one thread at a time."""

    def __init__(self, source: MetricsSource) -> None:
        """Nothing is asked yet.

        Args:
            source: whom to ask.
        """
        self.source = source
        self._asked = threading.Semaphore(0)
        self._answered = threading.Event()
        self._result: Sequence[Family] | BaseException = ()
        self._busy = False
        self._late = False
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Let the source begin; it is not asked twice at a time."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=f"metrics of {self.source.name}", daemon=True
            )
            self._thread.start()
        if not self._busy:
            self._busy = True
            self._answered.clear()
            self._asked.release()

    def answer(self, seconds: float) -> Sequence[Family]:
        """Its families, or why there are none.

        Args:
            seconds: how long to wait; a source that was late once is not waited for again until
                it has answered.

        Raises:
            SourceError: it raised, gave something else, or did not answer in time.
        """
        if not self._answered.wait(0 if self._late else max(0.0, seconds)):
            self._late = True
            raise SourceError("timeout", "no answer in time")
        self._busy = self._late = False
        result = self._result
        if isinstance(result, BaseException):
            raise SourceError("failed", repr(result)) from result
        if not all(isinstance(family, Family) for family in result):
            raise SourceError("invalid", f"families are {type(result).__name__}")
        return result

    def _run(self) -> None:
        while True:
            self._asked.acquire()
            try:
                self._result = self.source.families()
            except BaseException as error:  # noqa: BLE001, RUF100  # handed to whoever asked
                self._result = error
            self._answered.set()
