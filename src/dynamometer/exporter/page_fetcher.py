"""An engine's own `/metrics`, where its files are not enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from dynamometer.exporter.files_source import FilesSource
from dynamometer.exposition.families import Family
from dynamometer.metrics.http_source import INTERVAL_SECONDS, HttpSource
from dynamometer.metrics.page import MetricsPage
from dynamometer.process.blocking import BlockingCalls

logger = logging.getLogger(__name__)

_PROBE_SECONDS: Final = 30.0


class PageFetcher:
    """Fetches it in the background once it is known to be needed; until then now and then.

    Rendering its page costs an engine some milliseconds: an engine whose files say everything is
    not asked.
    """

    def __init__(self, source: HttpSource, page: MetricsPage) -> None:
        """Nothing is fetched yet.

        Args:
            source: the engine's page.
            page: where it is shown, once it is needed.
        """
        self.source = source
        self._page = page
        self._shown = False
        self._fetched = float("-inf")
        self._reading: BlockingCalls[Sequence[Family]] = BlockingCalls(
            f"the files of {source.owner}"
        )

    @property
    def known(self) -> bool:
        """Whether it was asked for once: what it has is known, or that it does not answer."""
        return self._fetched > float("-inf")

    async def look(self, needed: bool | None, files: FilesSource | None) -> None:
        """Fetch the page where it is time to; called about once a second.

        Args:
            needed: True where the files are not enough; None where that is to be found out, by
                families of the page that they have not.
            files: the engine's files.

        Raises:
            HangError: The files cannot be read in time.
        """
        interval = INTERVAL_SECONDS if needed or self._shown else _PROBE_SECONDS
        if time.monotonic() - self._fetched < interval:
            return
        self._fetched = time.monotonic()
        await self.source.fetch()
        if needed is None and files is not None:
            await self._reading.run(files.families)
            needed = bool(self.source.names() - files.names)
        if needed and not self._shown:
            self._shown = True
            self._page.add(self.source)
            logger.info("%s: fetched in the background: %s", self.source.owner, self.source.url)
