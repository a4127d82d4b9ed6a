"""A daemon thread that runs blocking calls one after another.

`asyncio.to_thread` is unsuitable: it shares a few threads among all callers, and the interpreter
waits for these threads at its end. A file system that hangs would occupy the threads, and would
keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from dynamometer.process.blocking import retrieve_exception

Result = TypeVar("Result")
IDLE_SECONDS: Final = 1.0


class BackgroundThread:
    """A thread that runs blocking calls in order, and ends after `IDLE_SECONDS` without calls."""

    def __init__(self, name: str) -> None:
        """Store the name; the first `submit` starts the thread.

        Args:
            name: the name of the thread.
        """
        self._name = name
        # Shared with the thread, under the condition's lock.
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run `call` after all earlier calls, and return the future of its result.

        Cancelling the future before its call starts drops the call.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        future.add_done_callback(retrieve_exception)
        with self._changed:
            self._calls.append((call, future))
            self._changed.notify()
            # In a child of `fork`, the thread exists but does not run.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    self._changed.wait(IDLE_SECONDS)
                if not self._calls:
                    self._thread = None
                    return
                call, future = self._calls.popleft()
            if future.cancelled():
                continue
            try:
                set_outcome = _outcome_setter(future, result=call())
            except BaseException as error:  # the future raises the error in the caller
                set_outcome = _outcome_setter(future, error=error)
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                future.get_loop().call_soon_threadsafe(set_outcome)


def _outcome_setter(
    future: asyncio.Future[Any], *, result: Any = None, error: BaseException | None = None
) -> Callable[[], None]:
    """Return a function that sets the result or the error of `future`."""

    def set_outcome() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return set_outcome
