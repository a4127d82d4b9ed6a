"""Asking a source for its families, and looking at what it gives."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamometer.errors import ExpositionError
from dynamometer.exposition.families import TYPES, Family, Metadata
from dynamometer.metrics.sources import MetricsSource

logger = logging.getLogger(__name__)


class SourceError(Exception):
    """A source has no families to show now; `reason` is what is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Given:
    """What a source has given.

    Attributes:
        families: as they are now.
        errors: what it has left out so far, how often, by reason; None where it cannot say.
    """

    families: Sequence[Family]
    errors: Mapping[str, int] | None


Answer = Given | SourceError


class Collection:
    """One source, asked again and again, by one thread at a time.

    Attributes:
        source: whom to ask.
        expected: names of families that are the process's own in it; see `MetricsPage.add`.
        taken: its families as they were last taken for the page.
    """

    def __init__(self, source: MetricsSource, *, expected: frozenset[str] = frozenset()) -> None:
        """Nothing is asked yet."""
        self.source = source
        self.expected = expected
        # Set by the thread that asks; `_good` belongs to it, and `taken` to the refresh's thread.
        self._asking: threading.Thread | None = None
        self.taken: Sequence[Family] = ()
        self._good: dict[int, Family] = {}

    @property
    def busy(self) -> bool:
        """Whether a thread is asking it, perhaps one that was left behind with it.

        In a child of fork that thread is not alive.
        """
        return self._asking is not None and self._asking.is_alive()

    def ask(self) -> Answer:
        """Its families and errors, or why there are none; may take as long as the source does.

        All that is the source's own code runs in here, and what it raises goes no further.
        """
        self._asking = threading.current_thread()
        try:
            families = self.source.families()
            wrong = self._checked(families)
            return SourceError("invalid", wrong) if wrong else Given(families, self._errors())
        except BaseException as error:  # noqa: BLE001, RUF100  # handed to whoever asked
            reason = "invalid" if isinstance(error, ExpositionError) else "failed"
            failed = SourceError(reason, f"{_said(error)}{_place(error)}")
            failed.__cause__ = error
            return failed
        finally:
            self._asking = None

    def _errors(self) -> Mapping[str, int] | None:
        try:
            return {str(reason): int(count) for reason, count in self.source.errors.items()}
        except BaseException as error:  # noqa: BLE001, RUF100  # its families are good
            logger.debug("errors of %s cannot be read: %s", self.source.name, _said(error))
            return None

    def _checked(self, families: object) -> str:
        """What is wrong with the families, if anything; each object is looked at once."""
        if not isinstance(families, list | tuple):
            return f"families are {type(families).__name__}, not a list or tuple"
        fresh = [family for family in families if id(family) not in self._good]
        for family in fresh:
            if wrong := _fault(family):
                return wrong
        if fresh:
            self._good = {id(family): family for family in families}
        return ""


def _said(error: BaseException) -> str:
    """What an error says of itself; its class where even that fails."""
    try:
        return repr(error)
    except BaseException:  # noqa: BLE001, RUF100  # the text is what matters least
        return type(error).__name__


def _place(error: BaseException) -> str:
    """Where it was raised, for whoever looks for it: the last line of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _fault(family: object) -> str:
    """What keeps a family off every page; empty for nothing."""
    if not isinstance(family, Family):
        return f"a family is {type(family).__name__}"
    if not isinstance(family.metadata, Metadata) or family.metadata.type not in TYPES:
        return "a family's metadata is none"
    try:
        _ = family.metadata.text_header, family.metadata.openmetrics_header
    except (UnicodeError, AttributeError, TypeError) as error:
        return f"{family.name}: its metadata cannot be written: {error}"
    for chunks in (family.chunks, family.openmetrics_chunks or ()):
        if not isinstance(chunks, tuple) or not all(isinstance(c, bytes) for c in chunks):
            return f"{family.name}: chunks are no bytes"
        try:
            b"".join(chunks).decode()
        except UnicodeDecodeError as error:
            return f"{family.name}: {error}"
    return ""
