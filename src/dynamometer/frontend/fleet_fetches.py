"""Fetches of the pages of all workers and exporters, shared by all who ask at one time.

No page is requested while no reader asks. One fetch takes a limited time: a process that is late,
or whose page has a fault, has no families in it, and is logged once for each change of its state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import urlencode

import aiohttp

from dynamometer.engines import kinds
from dynamometer.errors import ExpositionError
from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import Selection
from dynamometer.exposition.parser import Parser
from dynamometer.exposition.relabelling import Relabelling
from dynamometer.exposition.samples import Sample
from dynamometer.exposition.series import label_text
from dynamometer.metrics.remote_page import RemotePage, RemotePageError, fetch_page
from dynamometer.names import build, labels, name_prefix
from dynamometer.process import tasks
from dynamometer.process.background import BackgroundThread
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import Record

logger = logging.getLogger(__name__)

# One second is promised; the rest of it is for merging and rendering.
DEADLINE_SECONDS: Final = 0.8
# A page of 30,000 series. A larger one could not be parsed before the deadline.
LARGEST_PAGE_BYTES: Final = 8 << 20
# Short lines take as much time as long ones.
LARGEST_PAGE_LINES: Final = 50_000
# A larger page is parsed in another thread, so that the pages of other workers need not wait.
_LARGEST_SMALL_PAGE_BYTES: Final = 256 << 10
# A longer query may exceed the longest request line of a worker.
_LONGEST_QUERY: Final = 4096
# Each fetch has a connection to every process, and the number of different queries has no limit.
_MOST_SELECTIONS: Final = 2
# The families of engines, those that are derived from them, and the phase and node of each.
_ENGINE_FAMILIES: Final = Selection.of(
    prefixes=(*kinds.METRIC_PREFIXES, f"{name_prefix.DYNAMOMETER}_engine_", build.WORKER_INFO)
)
Processes = Callable[[], Awaitable[Iterable[Record]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProcessPage:
    """The engine families of one process, or the reason why they are missing.

    Attributes:
        record: the process.
        families: the families, all series with the id of the process as `worker_id`; empty after
            an error.
        others: families whose series have another `worker_id`, as those of an exporter.
        requested_at: the time of the monotonic clock at which the page was requested.
        last_success: the Unix time at which the last page was read; None if none was.
        error: the reason why the page could not be read; None after a success.
    """

    record: Record
    families: Sequence[Family] = ()
    others: Sequence[Family] = ()
    requested_at: float
    last_success: float | None
    error: RemotePageError | None = None


@dataclass(frozen=True, eq=False)
class FleetPages:
    """The result of one fetch.

    Attributes:
        whole: True if the families were not selected by name.
        pages: the pages of all processes, ordered by id.
    """

    whole: bool
    pages: Sequence[ProcessPage]


class FleetFetches:
    """Fetches the pages of all processes, each fetch once for all who ask while it runs.

    The event loop owns all attributes.
    """

    def __init__(
        self,
        processes: Processes,
        session: aiohttp.ClientSession,
        thread: BackgroundThread,
        *,
        page_bytes: int = LARGEST_PAGE_BYTES,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        """Store the arguments; each call of `fetch` reads the pages.

        Args:
            processes: returns the processes whose pages are fetched.
            session: the session that sends the requests.
            thread: parses the pages, except large ones.
            page_bytes: the largest size of one page in bytes.
            deadline: the longest duration of a fetch in seconds.
        """
        self._processes = processes
        self._session = session
        self._thread = thread
        self._thread_of_large = BackgroundThread("large pages of the fleet")
        self._page_bytes = page_bytes
        self._deadline = deadline
        self._running: dict[asyncio.Task[FleetPages], frozenset[str]] = {}
        self._readers: dict[int, _PageReader] = {}

    async def close(self) -> None:
        """End the fetches that are running."""
        for task in tuple(self._running):
            await tasks.end(task)

    async def fetch(self, names: frozenset[str] = frozenset()) -> FleetPages:
        """Return the pages of a running fetch that has the families, or else of a new fetch.

        While two fetches run, a third one has all families.

        Args:
            names: the names of families or samples, in the legacy character set, that are needed;
                empty for all.

        Raises:
            DynamometerError: The processes are unknown.
        """
        query = urlencode([("name[]", name) for name in sorted(names)])
        if len(query) > _LONGEST_QUERY:
            names, query = frozenset(), ""
        for task, selected in self._running.items():
            if not selected or (names and names <= selected):
                return await asyncio.shield(task)
        if len(self._running) >= _MOST_SELECTIONS:
            names, query = frozenset(), ""
        task = asyncio.create_task(self._fetch(query), name="pages of the fleet")
        self._running[task] = names
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[FleetPages]) -> None:
        del self._running[task]
        if not task.cancelled():
            task.exception()  # all readers may have stopped waiting

    async def _fetch(self, query: str) -> FleetPages:
        records = sorted(await self._processes(), key=lambda record: record.id)
        readers = {one.id: self._readers.get(one.id) or _PageReader(one.id) for one in records}
        self._readers = readers
        until = time.monotonic() + self._deadline
        async with asyncio.TaskGroup() as group:
            reading = [
                group.create_task(self._read(one, readers[one.id], query, until)) for one in records
            ]
        return FleetPages(not query, [task.result() for task in reading])

    async def _read(
        self, record: Record, reader: _PageReader, query: str, until: float
    ) -> ProcessPage:
        requested_at = time.monotonic()
        try:
            async with asyncio.timeout(until - requested_at):
                page = await self._request(record, query)
                found = await self._parse(page, reader, whole=not query, until=until)
        except TimeoutError as late:
            message = str(late) or f"no page within {self._deadline:g} s"
            error = RemotePageError("timeout", message)
        except (ExpositionError, ValueError) as fault:
            error = RemotePageError("invalid", str(fault))
        except RemotePageError as fault:
            error = fault
        else:
            reader.note_success(record, whole=not query)
            return ProcessPage(
                record=record,
                families=found.families,
                others=found.others,
                requested_at=requested_at,
                last_success=reader.last_success,
            )
        reader.note_error(record, error, whole=not query)
        return ProcessPage(
            record=record,
            requested_at=requested_at,
            last_success=reader.last_success,
            error=error,
        )

    async def _parse(
        self, page: RemotePage, reader: _PageReader, *, whole: bool, until: float
    ) -> _EngineFamilies:
        if len(page.body) > _LARGEST_SMALL_PAGE_BYTES:
            thread, parser = self._thread_of_large, reader.parser_of_large
        else:
            thread, parser = self._thread, reader.parser
        # One large page must leave time for the next one.
        parse = partial(parser.parse, page, whole=whole, until=until, seconds=self._deadline / 2)
        return await thread.submit(parse)

    async def _request(self, record: Record, query: str) -> RemotePage:
        if record.page_url is None:
            raise RemotePageError("no_page", "the process has no page: its --system-port is -1")
        url = f"{record.page_url}{query and '?'}{query}"
        return await fetch_page(self._session, url, limit=self._page_bytes, deadline=self._deadline)


class _EngineFamilies(NamedTuple):
    """See `ProcessPage`."""

    families: Sequence[Family]
    others: Sequence[Family]


class _EngineParser:
    """Parses the pages of one process; belongs to one thread."""

    def __init__(self, id_: int) -> None:
        """Create a parser.

        Args:
            id_: the id of the process.
        """
        label = label_text(labels.WORKER_ID, hexadecimal(id_))
        self._label_texts = (f",{label}", f"{{{label}")
        self._parser = Parser()
        self._relabelling = Relabelling({labels.WORKER_ID: hexadecimal(id_)})

    def parse(
        self, page: RemotePage, *, whole: bool, until: float, seconds: float
    ) -> _EngineFamilies:
        """Return the families of engines on a page.

        Args:
            page: the page.
            whole: True if the families of the page were not selected by name.
            until: see `Parser.parse`.
            seconds: the duration after which the parser stops, if this is before `until`.

        Raises:
            RemotePageError: The page has too many lines.
            ExpositionError: A line of the page is not valid: other lines may be missing.
            TimeoutError: The page cannot be parsed in time.
        """
        if page.body.count(b"\n") > LARGEST_PAGE_LINES:
            raise RemotePageError("too_large", f"more than {LARGEST_PAGE_LINES:,} lines")
        # Only the next whole page has the series of this one again.
        parser = self._parser if whole else Parser()
        until = min(until, time.monotonic() + seconds)
        parsed = parser.parse(page.body, page.content_type, until=until)
        if parsed.dropped:
            raise ExpositionError(parsed.fault)
        families = _ENGINE_FAMILIES.apply(parsed.families)
        unlabelled = [family for family in families if not self._labelled(family)]
        labelled = dict(zip(unlabelled, self._relabelling.apply(unlabelled), strict=True))
        own, others = [], []
        for family in families:
            found = labelled.get(family)
            _check_unique(found or family)
            if found is None or self._labelled(found):
                own.append(found or family)
                continue
            by_owner: dict[bool, list[Sample]] = {True: [], False: []}
            for sample in found.samples:
                by_owner[self._is_own(sample)].append(sample)
            others.append(Family.of_samples(found.metadata, by_owner[False]))
            if by_owner[True]:
                own.append(Family.of_samples(found.metadata, by_owner[True]))
        return _EngineFamilies(own, others)

    def _labelled(self, family: Family) -> bool:
        return all(map(self._is_own, family.samples))

    def _is_own(self, sample: Sample) -> bool:
        """Return whether a series has the label `worker_id` with the id of this process."""
        text = sample.series.text
        return self._label_texts[0] in text or self._label_texts[1] in text


def _check_unique(family: Family) -> None:
    """Raise `ExpositionError` if a family has a series twice."""
    texts = [sample.series.text for sample in family.samples]
    if len(set(texts)) < len(texts):
        twice = next(text for text, count in Counter(texts).items() if count > 1)
        raise ExpositionError(f"the series {twice[:200]} is twice on the page")


class _PageReader:
    """Remembers the series, the last success and the state of one process.

    The event loop owns the attributes, and each thread its parser.

    Attributes:
        parser: parses small pages.
        parser_of_large: parses large pages.
        last_success: see `ProcessPage`.
    """

    def __init__(self, id_: int) -> None:
        """Create a reader.

        Args:
            id_: the id of the process.
        """
        self.parser = _EngineParser(id_)
        self.parser_of_large = _EngineParser(id_)
        self.last_success: float | None = None
        self._fault_reason = ""
        self._fault_of_whole = False

    def note_success(self, record: Record, *, whole: bool) -> None:
        """Note that a page was read now.

        Selected families do not end the fault of a whole page, which may be too large.
        """
        self.last_success = time.time()
        if self._fault_reason and (whole or not self._fault_of_whole):
            logger.info("the page of %s %016x can be read again", record.role, record.id)
            self._fault_reason = ""

    def note_error(self, record: Record, error: RemotePageError, *, whole: bool) -> None:
        """Note that the page could not be read; log the first such error, and a new reason."""
        if self._fault_reason != error.reason:
            self._fault_reason, self._fault_of_whole = error.reason, whole
            logger.warning("the page of %s %016x is omitted: %s", record.role, record.id, error)
