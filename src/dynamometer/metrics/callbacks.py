"""Functions of a user's that a scrape calls, as sources of the page.

So they have what every source has: a deadline, errors that are counted and cost nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from dynamometer.errors import ArgumentError, ExpositionError
from dynamometer.exposition.families import Family
from dynamometer.exposition.parser import Parser
from dynamometer.metrics.sources import NO_ERRORS


def checked(function: object) -> None:
    """Raise where a scrape cannot call `function`.

    Raises:
        ArgumentError: it is not callable, or a coroutine function.
    """
    if not callable(function):
        raise ArgumentError(f"{function!r} cannot be called: a callback is a function")
    if inspect.iscoroutinefunction(function):
        raise ArgumentError(
            f"{function!r} is a coroutine function: a scrape calls its callbacks in a thread; "
            "let a task of yours set the instruments instead"
        )


class CallbackSource:
    """Called before each scrape; shows nothing itself."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        """Nothing is called yet.

        Args:
            name: what its errors are counted under.
            function: sets some instruments; what it returns is passed over.
        """
        self.name = self.owner = name
        self._function = function

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        result = self._function()
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError("the callback has returned a coroutine, which nobody awaits")
        return ()

    @property
    def errors(self) -> Mapping[str, int]:
        """None: it raises."""
        return NO_ERRORS


class TextSource:
    """A source that shows the text, of the format 0.0.4, that a function returns."""

    def __init__(self, name: str, function: Callable[[], str | bytes | None]) -> None:
        """Make a source without calling `function`.

        Args:
            name: the source's name in the count of its errors.
            function: returns the text; empty, or None, for nothing.
        """
        self.name = self.owner = name
        self._function = function
        self._parser = Parser()
        self._last: str | bytes = ""
        self._families: Sequence[Family] = ()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`.

        Raises:
            ExpositionError: the function did not return a text, or a line of the text cannot be
                read; the message names the line.
        """
        text = self._function()
        if text is None:
            text = ""
        if not isinstance(text, str | bytes):
            raise ExpositionError(f"the callback has returned {type(text).__name__}, not a text")
        if text != self._last:
            parsed = self._parser.parse(_encoded(text))
            if parsed.dropped:  # a fault of the user's own code, which the user can repair
                raise ExpositionError(parsed.fault)
            self._families = parsed.families
            self._last = text
        return self._families

    @property
    def errors(self) -> Mapping[str, int]:
        """Nothing: each fault is raised."""
        return NO_ERRORS


def _encoded(text: str | bytes) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise ExpositionError(f"the text of the callback: {error}") from None
