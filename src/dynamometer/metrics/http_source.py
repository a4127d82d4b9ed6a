"""An engine's own page as a source: fetched in the background, never at a scrape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp

from dynamometer.errors import ExpositionError
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.merging import UntypedFamilies
from dynamometer.exposition.ordering import Ordering
from dynamometer.exposition.parser import Parsed, Parser
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.exposition.series import split_lines
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.response_body import TooLargeError, read_body
from dynamometer.names import process

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 2.0
DEADLINE_SECONDS: Final = 10.0
# A page is current for two intervals, this, and twice the time that its fetch took.
_GRACE_SECONDS: Final = 1.0
# Ten times the page of an engine with 16,000 series.
LARGEST_PAGE_BYTES: Final = 32 << 20
# Compressing it would cost an engine more than sending it.
_PLAIN: Final = {"Accept-Encoding": "identity", "Accept": "text/plain;version=0.0.4,*/*;q=0.1"}


@dataclass(frozen=True)
class _Page:
    """The last page that was fetched.

    Attributes:
        until: when it stops being current, of the monotonic clock.
        ends: how many ends of the engine were known when the page was requested.
        families: of the page.
        kept: the totals alone, which stay without the engine.
    """

    until: float = float("-inf")
    ends: int = 0
    families: Sequence[Family] = ()
    kept: Sequence[Family] = ()


class HttpSource:
    """The page at a URL as of its last fetch.

    A page that is older than two intervals and a fetch is not shown: a gauge of long ago is a lie.
    With `totals`, counters, histograms and summaries stay, and continue when the engine is back.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        session: aiohttp.ClientSession,
        owner: str | None = None,
        prefixes: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        totals: Totals | None = None,
        interval: float = INTERVAL_SECONDS,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        """Nothing is fetched before `run`.

        Args:
            name: what its errors are counted under.
            url: of the page.
            session: to fetch it with.
            owner: see `MetricsSource`; by default the name.
            prefixes: only families whose name begins with one of them; none: all.
            labels: constant ones, added to every series that has not its own.
            totals: keeps the page's totals over restarts of the engine, for this source alone.
            interval: between two fetches, seconds.
            deadline: how long a fetch may take, seconds.
        """
        self.name = name
        self.owner = owner or name
        self.url = url
        self._session = session
        self._interval = interval
        self._deadline = deadline
        # Written by the event loop alone, each as one reference; any thread may read them.
        self._page = _Page()
        self._ends = 0
        self._errors: Mapping[str, int] = {}
        # Of the event loop.
        self._fault = ""
        self._dropping = False
        self.fault = ""  # what the last fetch met, for people
        # Of the thread that parses a page, one at a time.
        self._parser = Parser()
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))
        self._relabelling = Relabelling(labels)
        self._ordering = Ordering()
        self._untyped = UntypedFamilies()
        self._untyped_kept = UntypedFamilies()
        self._totals = totals
        self._parsed_ends = 0

    @property
    def errors(self) -> Mapping[str, int]:
        """See `MetricsSource.errors`; the mapping never changes."""
        return self._errors

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        page = self._page
        current = page.ends == self._ends and time.monotonic() <= page.until
        return page.families if current else page.kept

    def note_end(self) -> None:
        """Say that the engine has ended: everything but totals leaves the page at once.

        A page that was requested before is of the engine that ended: only its totals are shown.
        Whether the engine that comes after it begins again is for its page to say: one that shares
        a directory of multiprocess files with the former continues by itself.
        """
        self._ends += 1

    def names(self) -> frozenset[str]:
        """The families that it has, by the names that the text format has."""
        return frozenset(family.metadata.sample_name for family in self.families())

    async def run(self) -> None:
        """Fetch the page at each interval, for ever."""
        while True:
            await self.fetch()
            await asyncio.sleep(self._interval)

    async def fetch(self) -> None:
        """Fetch the page once; a fault is counted, and logged once a state."""
        ends, began = self._ends, time.monotonic()
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.get(
                    self.url, headers=_PLAIN, auto_decompress=False
                ) as answer:
                    body = await read_body(answer, LARGEST_PAGE_BYTES)
            if answer.status != 200:
                self._note("status", f"answers {_status(answer.status)}")
                return
            if ends != self._ends:
                return
            content_type = answer.headers.get("Content-Type", "")
            parsed = await asyncio.to_thread(self._parser.parse, body, content_type)
            families, kept = await asyncio.to_thread(self._shown, parsed, ends)
            self._note_dropped(parsed)
        except TooLargeError as error:
            self._note("too_large", str(error))
        except TimeoutError:
            self._note("timeout", f"no answer within {self._deadline:g} s")
        except (aiohttp.ClientError, OSError) as error:
            self._note("unreachable", str(error))
        except (ExpositionError, ValueError) as error:
            self._note("invalid", str(error))
        else:
            now = time.monotonic()
            grace = min(self._deadline, _GRACE_SECONDS + 2 * (now - began))
            self._page = _Page(now + 2 * self._interval + grace, ends, families, kept)
            if self._fault:
                logger.info("%s is there again", self.url)
            self._fault = self.fault = ""

    def _shown(self, parsed: Parsed, ends: int) -> tuple[Sequence[Family], Sequence[Family]]:
        """Return the families of a page, and what stays of them without the engine."""
        whole = parsed.families
        families = self._ordering.apply(self._relabelling.apply(self._filter.apply(whole)))
        if self._totals is None:
            return self._untyped.apply(families), ()
        ended, self._parsed_ends = ends != self._parsed_ends, ends
        families = self._totals.update(families, began=_start_time(whole), ended=ended)
        return self._untyped.apply(families), self._untyped_kept.apply(self._totals.kept())

    def _note_dropped(self, parsed: Parsed) -> None:
        """Count the lines of a page that could not be read, and log the first of them once."""
        if parsed.dropped:
            self._count("invalid", parsed.dropped)
            if not self._dropping:
                logger.warning(
                    "metrics of %s: %s: %d lines are dropped; %s",
                    self.name, self.url, parsed.dropped, parsed.fault,
                )  # fmt: skip
        elif self._dropping:
            logger.info("metrics of %s: %s: no line is dropped any more", self.name, self.url)
        self._dropping = parsed.dropped > 0

    def _note(self, reason: str, message: str) -> None:
        self._count(reason, 1)
        self.fault = f"{self.url}: {message}"
        if self._fault != reason:
            self._fault = reason
            logger.warning("metrics of %s: %s: %s", self.name, self.url, message)

    def _count(self, reason: str, number: int) -> None:
        self._errors = {**self._errors, reason: self._errors.get(reason, 0) + number}


def _status(code: int) -> str:
    """A status with the words of HTTP for it: 401 Unauthorized."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _start_time(families: Sequence[Family]) -> float | None:
    """Return when the process of a page began; None if the page has no such sample, or several."""
    samples = [
        sample
        for family in families
        if family.name == process.START_TIME_SECONDS
        for sample in split_lines(family.lines)
    ]
    if len(samples) != 1:
        return None
    _, rest = samples[0]
    return float(rest.partition(" ")[0])
