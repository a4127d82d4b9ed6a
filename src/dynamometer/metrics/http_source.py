"""An engine's own page as a source: fetched in the background, never at a scrape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp

from dynamometer.errors import ExpositionError
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.parser import Parsed, Parser
from dynamometer.exposition.relabel import Relabelling
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.ordering import Ordering
from dynamometer.names import process

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 2.0
DEADLINE_SECONDS: Final = 1.0
# Ten times the page of an engine with 16,000 series.
LARGEST_PAGE_BYTES: Final = 32 << 20
# Compressing it would cost an engine more than sending it.
_PLAIN: Final = {"Accept-Encoding": "identity", "Accept": "text/plain;version=0.0.4,*/*;q=0.1"}


class TooLargeError(ValueError):
    """An answer is larger than is taken."""


async def read_limited(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of an answer.

    Args:
        answer: its headers have been read.
        limit: the most bytes that are taken.

    Raises:
        TooLargeError: it has more.
        aiohttp.ClientError: the connection broke.
    """
    pieces, size = [], 0
    async for piece in answer.content.iter_any():
        size += len(piece)
        if size > limit:
            raise TooLargeError(f"more than {limit >> 20} MiB")
        pieces.append(piece)
    return b"".join(pieces)


class HttpSource:
    """A text page at a URL, as it was when it was last fetched.

    When it has not been there for two intervals its families are gone: a gauge of long ago is a
    lie. With `totals`, counters, histograms and summaries stay, and go on when the engine is there
    again.
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
        self.errors: Counter[str] = Counter()
        self.url = url
        self._session = session
        self._interval = interval
        self._deadline = deadline
        self._parser = Parser()
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))
        self._relabelling = Relabelling(labels)
        self._ordering = Ordering()
        self._totals = totals
        self._families: Sequence[Family] = ()
        self._kept: Sequence[Family] = ()
        self._ends = 0
        self._began = b""
        self._fetched = float("-inf")
        self._fault = ""
        self._dropping = False
        self.fault = ""  # what the last fetch met, for people

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        if time.monotonic() - self._fetched > 2 * self._interval + self._deadline:
            return self._kept
        return self._families

    def note_end(self) -> None:
        """Say that the engine has ended: what is no total leaves at once.

        A page that is on its way just now is left out. Whether the engine that comes after it
        begins anew is for its page to say: one that shares a directory of multiprocess files with
        the former goes on by itself.
        """
        self._ends += 1
        self._fetched = float("-inf")

    def names(self) -> frozenset[str]:
        """The families that it has, by the names that the text format has."""
        return frozenset(family.metadata.sample_name for family in self.families())

    async def run(self) -> None:
        """Fetch the page at each interval, for ever."""
        while True:
            await self.fetch()
            await asyncio.sleep(self._interval)

    async def fetch(self) -> None:
        """Fetch the page once; a fault is counted, and said once a state."""
        ends = self._ends
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.get(self.url, headers=_PLAIN) as answer:
                    page = await read_limited(answer, LARGEST_PAGE_BYTES)
            if answer.status != 200:
                self._note("status", f"answers {answer.status}")
                return
            if ends != self._ends:
                return
            content_type = answer.headers.get("Content-Type", "")
            parsed = await asyncio.to_thread(self._parser.parse, page, content_type)
            self._families, self._kept = await asyncio.to_thread(self._shown, parsed)
            self._note_dropped(parsed)
        except TooLargeError as error:
            self._note("too_large", str(error))
        except TimeoutError:
            self._note("timeout", f"no answer within {self._deadline} s")
        except (aiohttp.ClientError, OSError) as error:
            self._note("unreachable", str(error))
        except (ExpositionError, ValueError) as error:
            self._note("invalid", str(error))
        else:
            self._fetched = time.monotonic()
            if self._fault:
                logger.info("%s is there again", self.url)
            self._fault = self.fault = ""

    def _shown(self, parsed: Parsed) -> tuple[Sequence[Family], Sequence[Family]]:
        """The families of a page, and what stays of them without it."""
        whole = parsed.families
        families = self._ordering.apply(self._relabelling.apply(self._filter.apply(whole)))
        if self._totals is None:
            return families, ()
        began = next(
            (family.lines for family in whole if family.name == process.START_TIME_SECONDS), b""
        )
        before, self._began = self._began, began
        families = self._totals.update(families, restarted=bool(before) and began != before)
        return families, self._totals.kept()

    def _note_dropped(self, parsed: Parsed) -> None:
        """Count the lines of a page that could not be read, and log the first of them once."""
        if parsed.dropped:
            self.errors["invalid"] += parsed.dropped
            if not self._dropping:
                logger.warning(
                    "metrics of %s: %s: %d lines are dropped; %s",
                    self.name, self.url, parsed.dropped, parsed.fault,
                )  # fmt: skip
        elif self._dropping:
            logger.info("metrics of %s: %s: no line is dropped any more", self.name, self.url)
        self._dropping = parsed.dropped > 0

    def _note(self, reason: str, message: str) -> None:
        self.errors[reason] += 1
        self.fault = f"{self.url}: {message}"
        if self._fault != reason:
            self._fault = reason
            logger.warning("metrics of %s: %s: %s", self.name, self.url, message)
