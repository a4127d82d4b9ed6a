"""The engine's own `/metrics`, fetched in the background if families are missing in the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from dynamometer.exporter.files_source import FilesSource
from dynamometer.exposition.families import Family
from dynamometer.metrics.http_source import HttpSource
from dynamometer.metrics.page import MetricsPage
from dynamometer.process.blocking import BlockingCalls

logger = logging.getLogger(__name__)

_COMPARISON_SECONDS: Final = 30.0


class PageFetcher:
    """Fetches an engine's page, and shows it when the page has families that the files do not have.

    Until then the page is fetched only every 30 s, to compare it with the files, because rendering
    a page costs the engine some milliseconds.
    """

    def __init__(self, source: HttpSource, page: MetricsPage) -> None:
        """Prepare fetches.

        Args:
            source: the engine's page.
            page: the exporter's page, to which `source` is added when it is needed.
        """
        self.source = source
        self._page = page
        self._shown = False
        self._fetched_at = float("-inf")
        self._reading: BlockingCalls[Sequence[Family]] = BlockingCalls(
            f"the files of {source.owner}"
        )

    @property
    def fetched(self) -> bool:
        """True if the engine's page was fetched at least once, with or without success."""
        return self._fetched_at > float("-inf")

    def is_due(self, needed: bool | None) -> bool:
        """Return whether it is time for the next fetch; see `fetch`."""
        interval = self.source.interval
        if not (needed or self._shown):
            interval = max(interval, _COMPARISON_SECONDS)
        return time.monotonic() - self._fetched_at >= interval

    async def fetch(self, needed: bool | None, files: FilesSource | None) -> None:
        """Fetch the page.

        Args:
            needed: True to show the engine's page; None to show the page if it has families that
                the files do not have.
            files: the engine's files.

        Raises:
            HangError: The files cannot be read before the deadline.
        """
        self._fetched_at = time.monotonic()
        await self.source.fetch()
        if needed is None and files is not None:
            await self._reading.run(files.families)
            needed = bool(self.source.names() - files.names)
        if needed and not self._shown:
            self._shown = True
            self._page.add(self.source)
            logger.info("%s: %s is fetched in the background", self.source.owner, self.source.url)
