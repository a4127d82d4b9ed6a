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
from dynamometer.exposition.relabel import Relabelling
from dynamometer.exposition.text import TextParser

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 2.0
DEADLINE_SECONDS: Final = 1.0


class HttpSource:
    """A text page at a URL, as it was when it was last fetched.

    When it has not been there for two intervals its families are gone: a gauge of long ago is a
    lie. Whoever needs its totals keeps them.
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
            interval: between two fetches, seconds.
            deadline: how long a fetch may take, seconds.
        """
        self.name = name
        self.owner = owner or name
        self.errors: Counter[str] = Counter()
        self._url = url
        self._session = session
        self._interval = interval
        self._deadline = deadline
        self._parser = TextParser()
        self._filter = FamilyFilter(Selection.of(prefixes=prefixes))
        self._relabelling = Relabelling(labels)
        self._families: Sequence[Family] = ()
        self._fetched = float("-inf")
        self._fault = ""

    def families(self) -> Sequence[Family]:
        """See `MetricsSource.families`."""
        if time.monotonic() - self._fetched > 2 * self._interval + self._deadline:
            return ()
        return self._families

    async def run(self) -> None:
        """Fetch the page at each interval, for ever."""
        while True:
            await self.fetch()
            await asyncio.sleep(self._interval)

    async def fetch(self) -> None:
        """Fetch the page once; a fault is counted, and said once a state."""
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.get(self._url) as answer:
                    page = await answer.read()
            if answer.status != 200:
                self._note("status", f"answers {answer.status}")
                return
            self._families = await asyncio.to_thread(self._parse, page)
        except TimeoutError:
            self._note("timeout", f"no answer within {self._deadline} s")
        except (aiohttp.ClientError, OSError) as error:
            self._note("unreachable", str(error))
        except ExpositionError as error:
            self._note("invalid", str(error))
        else:
            self._fetched = time.monotonic()
            if self._fault:
                logger.info("%s is there again", self._url)
            self._fault = ""

    def _parse(self, page: bytes) -> Sequence[Family]:
        return self._relabelling.apply(self._filter.apply(self._parser.parse(page)))

    def _note(self, reason: str, message: str) -> None:
        self.errors[reason] += 1
        if self._fault != reason:
            self._fault = reason
            logger.warning("metrics of %s: %s: %s", self.name, self._url, message)
