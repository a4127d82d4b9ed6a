"""An engine's own page beside its files: shown if it is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from dynamometer.exporter.files_source import FilesSource
from dynamometer.exporter.page_fetcher import PageFetcher
from dynamometer.exporter.writers import Liveness
from dynamometer.metrics.http_source import HttpSource
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from exporting import Page

BUSY = "# TYPE app_busy gauge\napp_busy 1\n"
MORE = "# TYPE app_more gauge\napp_more 1\n"


@pytest.fixture
def files(tmp_path: Path) -> FilesSource:
    """Files with the family `app_busy`."""
    file = MmapedDict(str(tmp_path / "gauge_livesum_1.db"))
    file.write_value(mmap_key("app_busy", "app_busy", [], [], "Busy."), 1.0, 0.0)
    file.close()
    found = FilesSource("e", constant={}, prefixes=(), max_series=100, members=list)
    found.liveness = Liveness.ALIVE
    found.check([str(tmp_path)], read=True)
    return found


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found


@pytest.mark.parametrize(
    ("text", "needed", "shown"),
    [
        (BUSY, None, False),
        (BUSY + MORE, None, True),
        (BUSY, True, True),
        ("", None, False),
    ],
)
async def test_a_page_is_shown_if_it_is_needed_or_has_more_families(
    text: str,
    needed: bool | None,
    shown: bool,
    files: FilesSource,
    session: aiohttp.ClientSession,
) -> None:
    with Page(0, text) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/metrics"
        page = MetricsPage(InstrumentRegistry())
        fetcher = PageFetcher(HttpSource("e_http", url, session=session), page)
        states = [(fetcher.fetched, fetcher.is_due(needed))]
        await fetcher.fetch(needed, files)
        states.append((fetcher.fetched, fetcher.is_due(needed)))
        assert states == [(False, True), (True, False)]
        page.refresh()
        assert (b"app_" in page.render()) == shown
        server.shutdown()
