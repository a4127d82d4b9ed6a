"""Asking a source for its families, in a thread of its own and with a deadline.

A source may hang: on a file system, in a callback. It then loses its own families, and nothing
else: neither the page nor the end of the process waits for its thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dynamometer.exposition.families import TYPES, Family, Metadata
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
        self._result: Sequence[Family] | BaseException | str = ()
        self._good: dict[int, Family] = {}
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
        self._busy = False
        if self._late:  # that was the answer to an earlier question
            self._late = False
            self.ask()
            return self.answer(seconds)
        if isinstance(self._result, BaseException):
            raise SourceError("failed", repr(self._result)) from self._result
        if isinstance(self._result, str):
            raise SourceError("invalid", self._result)
        return self._result

    def _run(self) -> None:
        while True:
            self._asked.acquire()
            try:
                self._result = self._checked(self.source.families())
            except BaseException as error:  # noqa: BLE001, RUF100  # handed to whoever asked
                self._result = error
            self._answered.set()

    def _checked(self, families: object) -> Sequence[Family] | str:
        """The families, or what is wrong with them; each object is looked at once."""
        if not isinstance(families, list | tuple):
            return f"families are {type(families).__name__}, not a list or tuple"
        fresh = [family for family in families if id(family) not in self._good]
        for family in fresh:
            if wrong := _fault(family):
                return wrong
        if fresh:
            self._good = {id(family): family for family in families}
        return families


def _fault(family: object) -> str:
    """What keeps a family off every page; empty for nothing."""
    if not isinstance(family, Family):
        return f"a family is {type(family).__name__}"
    if not isinstance(family.metadata, Metadata) or family.metadata.type not in TYPES:
        return "a family's metadata is none"
    for chunks in (family.chunks, family.openmetrics_chunks or ()):
        if not isinstance(chunks, tuple) or not all(isinstance(c, bytes) for c in chunks):
            return f"{family.name}: chunks are no bytes"
        try:
            b"".join(chunks).decode()
        except UnicodeDecodeError as error:
            return f"{family.name}: {error}"
    return ""
