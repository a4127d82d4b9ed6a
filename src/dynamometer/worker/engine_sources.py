"""The families of a worker's engine on the worker's page, over all restarts of the engine."""

from __future__ import annotations

import asyncio
import logging
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil

from dynamometer.engines.interface import Launch, StartableEngine
from dynamometer.exposition.label_bounds import LabelBounds
from dynamometer.exposition.totals import Totals
from dynamometer.metrics.engine_callback import register_engine_metrics_callback
from dynamometer.metrics.http_source import HttpSource
from dynamometer.multiprocess import MultiprocessDirectory
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.children import alive
from dynamometer.runtime.distributed import Endpoint

logger = logging.getLogger(__name__)


class EngineSources:
    """The engine's multiprocess files, and its own page where it has families of its own.

    After the end of an engine, its counters and histograms stay and its gauges disappear.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        engine: StartableEngine,
        launch: Launch,
        *,
        labels: Mapping[str, str],
        session: aiohttp.ClientSession,
        max_series: int,
        label_bounds: LabelBounds,
    ) -> None:
        """Add the sources to the page of an endpoint.

        Args:
            endpoint: the endpoint.
            engine: the kind of the engine.
            launch: the sources of the engine.
            labels: labels to add to each series that does not have the label.
            session: the session that fetches the engine's page.
            max_series: the maximum number of series in the files.
            label_bounds: the bounds of label values that clients choose, for both sources.
        """
        self._files: MultiprocessDirectory | None = None
        self._page: HttpSource | None = None
        self._retiring: BlockingCalls[None] = BlockingCalls("the metrics files of ended processes")
        if launch.sources.directory is not None:
            # The reader of the files adds the labels, which costs half as much as adding them to
            # its output.
            self._files = MultiprocessDirectory(
                launch.sources.directory,
                labels=labels,
                owned=True,
                keep_totals=True,  # an engine may remove its files when it ends
                max_series=max_series,
                label_bounds=label_bounds,
            )
            register_engine_metrics_callback(
                endpoint, self._files, engine.metric_prefixes, source=engine.name
            )
        if launch.sources.page_url is not None:
            self._page = HttpSource(
                f"{engine.name}_http",
                launch.sources.page_url,
                session=session,
                owner=engine.name,
                prefixes=engine.metric_prefixes,
                labels=labels,
                label_bounds=label_bounds,
                totals=Totals(),
            )
            endpoint.metrics.register_source(self._page)

    def directories(self) -> Sequence[str]:
        """Return the directories of the engine's files; empty if the engine writes none."""
        return self._files.paths if self._files is not None else ()

    def use(self, launch: Launch) -> None:
        """Read the engine that `launch` starts; it writes its files to the same directory."""
        if self._page is not None and launch.sources.page_url is not None:
            self._page.url = launch.sources.page_url

    async def fetch(self, ready: asyncio.Event) -> None:
        """Fetch the engine's page, if it is a source, while `ready` is set; until cancelled."""
        while self._page is not None:
            await ready.wait()
            await self._page.fetch()
            await asyncio.sleep(self._page.interval)

    async def retire(self) -> None:
        """Hide the gauges of an engine that ended, and keep its totals without its files."""
        if self._page is not None:
            self._page.note_end()
        now = time.time()
        try:
            await self._retiring.run(self._retire_files, now)
        except HangError as error:
            logger.warning("%s; the gauges of the engine that ended may stay on the page", error)

    def _retire_files(self, ended_at: float) -> None:
        """Retire the files of all processes that have ended.

        A file system may hang here until the next engine has started: its files stay.
        """
        if self._files is not None:
            self._files.families()  # finds the files that no scrape has found yet
            self._files.retire(name for name in self._files.processes if not _lives(name))
            for path in self._files.paths:
                _remove_empty_directories(Path(path), before=ended_at)


def _lives(name: str) -> bool:
    """Return whether the process with the pid `name` lives."""
    try:
        return alive(psutil.Process(int(name)))
    except (psutil.Error, ValueError, OverflowError):
        return False


def _remove_empty_directories(path: Path, *, before: float) -> None:
    """Remove the empty directories in `path` that did not change since `before`, a Unix time."""
    with suppress(OSError):
        for entry in path.iterdir():
            with suppress(OSError):
                status = entry.lstat()
                if stat.S_ISDIR(status.st_mode) and status.st_mtime < before:
                    entry.rmdir()
