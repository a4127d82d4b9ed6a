"""Asking all sources, one after the other, in a thread of its own.

A source may hang: on a file system, in a callback. Whoever waits for the round then gives up on it,
and it loses its own families and nothing else: the thread is left behind with it, another one goes
on with the round, and neither the page nor the end of the process waits for the one that hangs.

One thread for all sources, and not one each: handing over to another thread costs as much as asking
a source that has nothing new, and every scrape would pay it several times.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable

from dynamometer.metrics.collection import Answer, Collection, SourceError

logger = logging.getLogger(__name__)

Answered = Callable[[Collection, Answer], None]


class Round:
    """One round of questions."""

    def __init__(
        self, collections: Iterable[Collection], answered: Answered, finish: Callable[[], None]
    ) -> None:
        """Nothing is asked yet.

        Args:
            collections: whom to ask, in that order.
            answered: called with each answer, by one thread at a time.
            finish: called at the end, whatever happens.
        """
        self._left = deque(collections)
        self._answered = answered
        self._finish = finish
        self._asked: Collection | None = None
        self._thread = 0
        self._lock = threading.Lock()

    def run(self) -> bool:
        """Go on with the round in this thread; whether it got to the end."""
        me = threading.get_ident()
        with self._lock:
            self._thread = me
        mine = True
        try:
            while mine and self._left:
                mine = self._ask_next(me)
        finally:
            if mine:
                self._finish()
        return mine

    def _ask_next(self, thread: int) -> bool:
        """Ask one source; whether the round is still the thread's."""
        with self._lock:
            collection = self._asked = self._left.popleft()
        answer = _LATE if collection.busy else collection.ask()
        with self._lock:
            if self._thread != thread:
                return False
            self._asked = None
        self._take(collection, answer)
        return True

    def give_up(self) -> bool:
        """Leave the source that is being asked behind, with its thread; whether there is one."""
        with self._lock:
            if self._asked is None:
                return False
            self._thread = 0
            collection, self._asked = self._asked, None
        self._take(collection, _LATE)
        return True

    def _take(self, collection: Collection, answer: Answer) -> None:
        """Hand over an answer, outside of the lock, which whoever gives up waits for."""
        try:
            self._answered(collection, answer)
        except Exception:
            logger.exception("an answer of a source was lost")  # ours, not the source's


class Rounds:
    """Rounds one after the other."""

    def __init__(self, name: str) -> None:
        """No thread is started yet.

        Args:
            name: of the thread.
        """
        self._name = name
        self._waiting: queue.SimpleQueue[Round] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def begin(self, one: Round) -> None:
        """Let a round begin, once those before it are over."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # a child of fork has none
                self._start(None)
        self._waiting.put(one)

    @property
    def asking(self) -> bool:
        """Whether it is this very thread that asks: in a source, or in what a source calls."""
        return threading.current_thread() is self._thread

    def give_up(self, one: Round) -> None:
        """Go on without the source that a round is waiting for."""
        with self._lock:
            if one.give_up():
                self._start(one)

    def _start(self, first: Round | None) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(first,), name=self._name, daemon=True
        )
        self._thread.start()

    def _run(self, first: Round | None) -> None:
        one = first
        while one is None or _run(one):
            one = self._waiting.get()


def _run(one: Round) -> bool:
    try:
        return one.run()
    except Exception:
        logger.exception("a scrape failed")  # ours, not a source's
        return True


_LATE = SourceError("timeout", "no answer in time")
