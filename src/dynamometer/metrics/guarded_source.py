"""A guard around a source: a fault of the source affects only the source's own families."""

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
    """A source that cannot be read now; `reason` is the label `reason` of the error count."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SourceResult:
    """The families and error counts of a source.

    Attributes:
        families: the families now.
        errors: the omissions of the source, by reason; None if the source failed to report them.
    """

    families: Sequence[Family]
    errors: Mapping[str, int] | None


class GuardedSource:
    """One source of a page, read by one thread at a time.

    Attributes:
        source: the source.
        expected: names of families that other sources may have too; see `MetricsPage.add`.
        current: the families that were read last; empty after an error.
    """

    def __init__(self, source: MetricsSource, *, expected: frozenset[str] = frozenset()) -> None:
        """Guard `source`, without reading it."""
        self.source = source
        self.expected = expected
        # The thread that reads owns `_reading_thread`, and `_valid`: the checked families, by `id`.
        # The thread that refreshes the page owns `current`.
        self._reading_thread: threading.Thread | None = None
        self.current: Sequence[Family] = ()
        self._valid: dict[int, Family] = {}

    @property
    def busy(self) -> bool:
        """True while a thread reads the source, even if a refresh has abandoned that thread.

        False in the child of a fork, which does not have that thread.
        """
        return self._reading_thread is not None and self._reading_thread.is_alive()

    def read(self) -> SourceResult | SourceError:
        """Return the families and errors of the source, or the exception as a `SourceError`.

        This call runs the source's own code, which may hang.
        """
        self._reading_thread = threading.current_thread()
        try:
            families = self.source.families()
            fault = self._first_fault(families)
            return (
                SourceError("invalid", fault) if fault else SourceResult(families, self._errors())
            )
        except BaseException as error:  # noqa: BLE001, RUF100  # returned
            reason = "invalid" if isinstance(error, ExpositionError) else "failed"
            failed = SourceError(reason, f"{_description(error)}{_location(error)}")
            failed.__cause__ = error
            return failed
        finally:
            self._reading_thread = None

    def _errors(self) -> Mapping[str, int] | None:
        try:
            return {str(reason): int(count) for reason, count in self.source.errors.items()}
        except BaseException as error:  # noqa: BLE001, RUF100  # the families are valid
            logger.debug("errors of %s cannot be read: %s", self.source.name, _description(error))
            return None

    def _first_fault(self, families: object) -> str:
        """Return the first fault of the families, or ""; each family is checked only once."""
        if not isinstance(families, list | tuple):
            return f"families are {type(families).__name__}, not a list or tuple"
        unchecked = [family for family in families if id(family) not in self._valid]
        for family in unchecked:
            if fault := _family_fault(family):
                return fault
        if unchecked:
            self._valid = {id(family): family for family in families}
        return ""


def _description(error: BaseException) -> str:
    """Return the `repr` of an error, or its class if that fails."""
    try:
        return repr(error)
    except BaseException:  # noqa: BLE001, RUF100  # the error itself is counted
        return type(error).__name__


def _location(error: BaseException) -> str:
    """Return the last file and line of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _family_fault(family: object) -> str:
    """Return why a family cannot be on a page, or ""."""
    if not isinstance(family, Family):
        return f"a family is {type(family).__name__}"
    if not isinstance(family.metadata, Metadata) or family.metadata.type not in TYPES:
        return "the metadata of a family is not a Metadata with a known type"
    try:
        _ = family.metadata.text_header, family.metadata.openmetrics_header
    except (UnicodeError, AttributeError, TypeError) as error:
        return f"{family.name}: its metadata cannot be written: {error}"
    try:
        chunks = family.chunks
        if not isinstance(chunks, tuple) or not all(isinstance(c, bytes) for c in chunks):
            return f"{family.name}: chunks are not a tuple of bytes"
        b"".join(chunks).decode()
        _ = family.openmetrics_chunks
    except UnicodeError as error:
        return f"{family.name}: {error}"
    return ""
