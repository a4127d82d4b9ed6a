"""A user's callbacks as sources of the page, so that a deadline and error counts apply to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from dynamometer.errors import ArgumentError, ExpositionError
from dynamometer.exposition.families import Family
from dynamometer.exposition.parser import Parser
from dynamometer.metrics.sources import NO_ERRORS


def check_callback(function: object) -> None:
    """Check that a scrape can call `function`.

    Raises:
        ArgumentError: `function` is not callable, or is a coroutine function.
    """
    if not callable(function):
        raise ArgumentError(f"{function!r} cannot be called: a callback must be a function")
    if inspect.iscoroutinefunction(function):
        raise ArgumentError(
            f"{function!r} is a coroutine function, which a scrape cannot await: set the "
            "instruments in a task of your event loop, or register a plain function"
        )


class CallbackSource:
    """A source that calls a function to set instruments, and has no families."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        """Store the function without calling it.

        Args:
            name: the label `source` of the source's errors.
            function: sets instruments; its result is ignored.
        """
        self.name = self.owner = name
        self._function = function

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        result = self._function()
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError("the callback has returned a coroutine, which a scrape cannot await")
        return ()

    @property
    def errors(self) -> Mapping[str, int]:
        """Empty: a callback that fails raises an exception."""
        return NO_ERRORS


class TextSource:
    """A source of the families in the text that a function returns."""

    def __init__(self, name: str, function: Callable[[], str | bytes | None]) -> None:
        """Store the function without calling it.

        Args:
            name: the label `source` of the source's errors.
            function: returns text of the format 0.0.4; an empty text or None for no families.
        """
        self.name = self.owner = name
        self._function = function
        self._parser = Parser()
        self._last: str | bytes = ""
        self._families: Sequence[Family] = ()

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`.

        Raises:
            ExpositionError: The function did not return a text, or a line of the text cannot be
                parsed; the message names the line.
        """
        text = self._function()
        if text is None:
            text = ""
        if not isinstance(text, str | bytes):
            raise ExpositionError(f"the callback has returned {type(text).__name__}, not text")
        if text != self._last:
            parsed = self._parser.parse(_encoded(text))
            if parsed.dropped:  # the user's own code is at fault, so the user can fix the text
                raise ExpositionError(parsed.fault)
            self._families = parsed.families
            self._last = text
        return self._families

    @property
    def errors(self) -> Mapping[str, int]:
        """Empty: a callback that fails raises an exception."""
        return NO_ERRORS


def _encoded(text: str | bytes) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise ExpositionError(f"the text of the callback: {error}") from None
