"""An engine's own page as a source, fetched in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import aiohttp

from dynamometer.errors import ExpositionError
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import FamilyFilter, Selection
from dynamometer.exposition.folding import SeriesFolding
from dynamometer.exposition.label_bounds import LabelBounds
from dynamometer.exposition.ordering import Ordering
from dynamometer.exposition.parser import Parsed, Parser
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.exposition.totals import Totals
from dynamometer.exposition.untyped import UntypedFamilies, clashing_in_text
from dynamometer.metrics.remote_page import RemotePageError, fetch_page
from dynamometer.metrics.sources import check_seconds
from dynamometer.names import process

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 2.0
FETCH_DEADLINE_SECONDS: Final = 10.0
# A page with very many series is fetched less often: at most this share of the time is spent on it.
_LARGEST_SHARE: Final = 0.1
# A page is current for two intervals, plus these seconds, plus twice the duration of its fetch.
_GRACE_SECONDS: Final = 1.0
# Ten times the size of an engine's page with 16,000 series.
LARGEST_PAGE_BYTES: Final = 32 << 20


@dataclass(frozen=True)
class _Page:
    """The last page that was fetched.

    Attributes:
        current_until: the time of the monotonic clock until which the page is current.
        end_count: the number of times that the engine had ended when the page was requested.
        families: the families of the page.
        kept_totals: the totals, which are shown while the page is not current.
    """

    current_until: float = float("-inf")
    end_count: int = 0
    families: Sequence[Family] = ()
    kept_totals: Sequence[Family] = ()


class _Result(NamedTuple):
    """A page that was read.

    Attributes:
        parsed: the content of the page.
        families: see `_Page`.
        kept_totals: see `_Page`.
        seconds: the processor time of reading the page.
    """

    parsed: Parsed
    families: Sequence[Family]
    kept_totals: Sequence[Family]
    seconds: float


class HttpSource:
    """The page at a URL, as it was at the last fetch.

    After two intervals and the time of a fetch, the gauges of a page are out of date, so the page
    is not shown. With `totals`, counters, histograms and summaries are still shown, and continue
    when the engine is restarted.

    Attributes:
        interval: the seconds between two fetches: more for a page that takes long to read.
        fault: a message about the last fetch; empty after a success.
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
        label_bounds: LabelBounds | None = None,
        interval: float = INTERVAL_SECONDS,
        deadline: float = FETCH_DEADLINE_SECONDS,
    ) -> None:
        """Store the arguments; `run` fetches the page.

        Args:
            name: the label `source` of the source's errors.
            url: the URL of the page.
            session: the session that fetches the page.
            owner: see `MetricsSource`; by default `name`.
            prefixes: only families whose name begins with one of these; empty for all families.
            labels: labels to add to each series that does not have the label.
            totals: keeps the page's totals across restarts of the engine; not shared.
            label_bounds: the bounds of label values, shared with the engine's other sources; None
                for no bounds.
            interval: the least number of seconds between two fetches; see `interval`.
            deadline: the longest duration of a fetch in seconds.

        Raises:
            ArgumentError: `interval` or `deadline` is not a number above 0.
        """
        check_seconds("interval", interval)
        check_seconds("deadline", deadline)
        self.name = name
        self.owner = owner or name
        self.url = url
        self._session = session
        self._shortest_interval = interval
        self._deadline = deadline
        # Only the event loop replaces these values; any thread may read them.
        self._page = _Page()
        self._end_count = 0
        self._errors: Mapping[str, int] = {}
        # The event loop owns these attributes.
        self._fault_reason = ""
        self._lines_dropped = self._series_dropped = False
        self.fault = ""
        # The thread that parses a page owns these attributes, one thread at a time.
        self._parser = Parser()
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))
        self._folding = SeriesFolding(label_bounds) if label_bounds is not None else None
        self._relabelling = Relabelling(labels)
        self._ordering = Ordering()
        self._untyped = UntypedFamilies(clashing_in_text)
        self._untyped_kept = UntypedFamilies(clashing_in_text)
        self._totals = totals
        self._parsed_end_count = 0
        # The seconds until the next fetch; replaced after a fetch, read by the event loop.
        self.interval = interval

    @property
    def errors(self) -> Mapping[str, int]:
        """See `MetricsSource.errors`; a returned mapping is never modified."""
        return self._errors

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        page = self._page
        current = page.end_count == self._end_count and time.monotonic() <= page.current_until
        return page.families if current else page.kept_totals

    def note_end(self) -> None:
        """Record that the engine has ended, and show only its totals from now on.

        A page that was requested before this call is a page of the engine that ended, so only its
        totals are shown, too. The values of the next page show whether its counters started again
        from 0: a restarted engine that writes into the same directory of multiprocess files
        continues the counts.
        """
        self._end_count += 1

    def names(self) -> frozenset[str]:
        """Return the names of the current families in the text format."""
        return frozenset(family.metadata.sample_name for family in self.families())

    async def run(self) -> None:
        """Fetch the page at each interval, until cancelled."""
        while True:
            await self.fetch()
            await asyncio.sleep(self.interval)

    async def fetch(self) -> None:
        """Fetch the page once; count a fault, and log the fault if its reason changed."""
        end_count, started = self._end_count, time.monotonic()
        try:
            page = await fetch_page(
                self._session,
                self.url,
                limit=LARGEST_PAGE_BYTES,
                deadline=self._deadline,
                redirects=True,
            )
            if end_count != self._end_count:
                return
            result = await asyncio.to_thread(self._read, page.body, page.content_type, end_count)
            self._note_dropped(result.parsed)
            self._note_long_values()
        except RemotePageError as error:
            self._note_fault(error.reason, str(error))
        except (ExpositionError, ValueError) as error:
            self._note_fault("invalid", str(error))
        else:
            now = time.monotonic()
            grace = min(self._deadline, _GRACE_SECONDS + 2 * (now - started))
            self.interval = max(self._shortest_interval, result.seconds / _LARGEST_SHARE)
            current_until = now + 2 * self.interval + grace
            self._page = _Page(current_until, end_count, result.families, result.kept_totals)
            if self._fault_reason:
                logger.info("%s answers again", self.url)
            self._fault_reason = self.fault = ""

    def _read(self, body: bytes, content_type: str, end_count: int) -> _Result:
        """Parse a page, and return the families to show; runs in a thread."""
        started = time.thread_time()
        parsed = self._parser.parse(body, content_type)
        families, kept = self._prepare(parsed, end_count)
        return _Result(parsed, families, kept, time.thread_time() - started)

    def _prepare(self, parsed: Parsed, end_count: int) -> tuple[Sequence[Family], Sequence[Family]]:
        """Return the families of a page, and the totals to show after the engine has ended."""
        whole = parsed.families
        families: Sequence[Family] = self._filter.apply(whole)
        if self._folding is not None:
            families = self._folding.apply(families)
        families = self._ordering.apply(self._relabelling.apply(families))
        kept: Sequence[Family] = ()
        if self._totals is not None:
            ended, self._parsed_end_count = end_count != self._parsed_end_count, end_count
            families = self._totals.update(families, began=_start_time(whole), ended=ended)
            kept = self._untyped_kept.apply(self._totals.kept())
        shown = self._untyped.apply(families)
        for family in shown:
            family.render_lines()  # so that a scrape only joins the lines
        return shown, kept

    def _note_dropped(self, parsed: Parsed) -> None:
        """Count the lines of a page that could not be parsed; log the first such page."""
        if parsed.dropped:
            self._count_errors("invalid", parsed.dropped)
            if not self._lines_dropped:
                logger.warning(
                    "metrics of %s: %s: %d %s dropped; %s", self.name, self.url, parsed.dropped,
                    "line is" if parsed.dropped == 1 else "lines are", parsed.fault,
                )  # fmt: skip
        elif self._lines_dropped:
            logger.info("metrics of %s: %s: all lines can be parsed again", self.name, self.url)
        self._lines_dropped = parsed.dropped > 0

    def _note_long_values(self) -> None:
        """Count the series whose label values are too long; log the first page with any."""
        if self._folding is None:
            return
        dropped = self._folding.dropped
        if dropped:
            self._count_errors("label_bytes", dropped)
            if not self._series_dropped:
                logger.warning(
                    "metrics of %s: %s: %d series dropped; %s", self.name, self.url, dropped,
                    self._folding.fault,
                )  # fmt: skip
        self._series_dropped = dropped > 0

    def _note_fault(self, reason: str, message: str) -> None:
        self._count_errors(reason, 1)
        self.fault = f"{self.url}: {message}"
        if self._fault_reason != reason:
            self._fault_reason = reason
            logger.warning("metrics of %s: %s: %s", self.name, self.url, message)

    def _count_errors(self, reason: str, number: int) -> None:
        self._errors = {**self._errors, reason: self._errors.get(reason, 0) + number}


def _start_time(families: Sequence[Family]) -> float | None:
    """Return the start time of the page's process; None if the page has none or several."""
    samples = [
        sample
        for family in families
        if family.name == process.START_TIME_SECONDS
        for sample in family.samples
    ]
    if len(samples) != 1:
        return None
    return float(samples[0].value)
