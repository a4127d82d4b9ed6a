"""`/metrics` over HTTP, as Prometheus and other scrapers request it."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dynamometer.exposition.families import Family
from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics import scraping
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from parsing import parse

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;"
    "q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/"
    "openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.7,"


class Slow:
    """A source that counts its calls, and waits until it may answer."""

    name = owner = "slow"
    errors: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = threading.Event()

    def families(self) -> Sequence[Family]:
        self.asked += 1
        self.may_answer.wait(5)
        return parse(b"slow 1\n")


@pytest.fixture
def page() -> MetricsPage:
    instruments = InstrumentRegistry()
    Counter("own_requests_total", "ours", ["x"], registry=instruments).labels("é").inc()
    Gauge("own_gauge", "ours", registry=instruments).set(2)
    Histogram("own_seconds", "ours", registry=instruments).observe(3)
    return MetricsPage(instruments)


@pytest.fixture
def arrivals() -> list[web.Request]:
    return []


@pytest.fixture
async def url(page: MetricsPage, arrivals: list[web.Request]) -> AsyncIterator[str]:
    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        arrivals.append(request)
        return await handler(request)

    app = web.Application(middlewares=[note])
    scraping.add_route(app, page)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener):
        yield f"{addresses.url(listener)}/metrics"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as made:
        yield made


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("text/html", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        (PROTOBUF + PROMETHEUS_3, OPENMETRICS),
        (PROTOBUF + "*/*;q=0.1", TEXT),
        ("application/openmetrics-text;q=0, text/plain;q=0.1", TEXT),
        ("APPLICATION/OpenMetrics-Text", OPENMETRICS),
    ],
)
async def test_the_format_is_the_one_that_the_scraper_prefers(
    url: str, session: aiohttp.ClientSession, accept: str | None, content_type: str
) -> None:
    headers = {"Accept-Encoding": "identity"} | ({} if accept is None else {"Accept": accept})
    async with session.get(url, headers=headers, skip_auto_headers=["Accept"]) as answer:
        text = (await answer.read()).decode()
        assert answer.headers["Content-Type"] == content_type
    families = list((parse_openmetrics if content_type == OPENMETRICS else parse_text)(text))
    assert {"own_requests", "own_gauge", "own_seconds"} <= {family.name for family in families}
    assert text.endswith("# EOF\n") is (content_type == OPENMETRICS)


async def test_gzip_is_used_on_request(
    url: str, session: aiohttp.ClientSession, page: MetricsPage
) -> None:
    async with session.get(url, headers={"Accept-Encoding": "gzip"}) as answer:
        packed = await answer.read()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert int(answer.headers["Content-Length"]) == len(packed)
    assert gzip.decompress(packed) == page.render()
    async with session.get(url, headers={"Accept-Encoding": "identity"}) as answer:
        assert "Content-Encoding" not in answer.headers
        assert await answer.read() == page.render()


async def test_names_choose_whole_families(url: str, session: aiohttp.ClientSession) -> None:
    query = [("name[]", "own_gauge"), ("name[]", "own_seconds_count")]
    plain = {"Accept-Encoding": "identity"}
    async with session.get(url, params=query, headers=plain) as answer:
        text = (await answer.read()).decode()
    names = {family.name for family in parse_text(text)}
    assert names == {"own_gauge", "own_seconds"}
    async with session.get(url, params=[("name[]", "no")], headers=plain) as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_head_has_only_the_headers(url: str, session: aiohttp.ClientSession) -> None:
    async with session.head(url, headers={"Accept-Encoding": "identity"}) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["Content-Type"] == TEXT
        assert int(answer.headers["Content-Length"]) > 0


async def arrived(arrivals: list[web.Request], count: int) -> None:
    async with asyncio.timeout(5):
        while len(arrivals) < count:
            await asyncio.sleep(0.01)


async def test_simultaneous_scrapers_share_one_rendering(
    url: str, session: aiohttp.ClientSession, page: MetricsPage, arrivals: list[web.Request]
) -> None:
    source = Slow()
    page.add(source)
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())

        async def scrape() -> bytes:
            async with session.get(url, headers={"Accept-Encoding": "identity"}) as answer:
                return await answer.read()

        scrapes = [group.create_task(scrape()) for _ in range(20)]
        await arrived(arrivals, 20)
        source.may_answer.set()
    assert source.asked == 1
    assert len({scrape.result() for scrape in scrapes}) == 1
    assert b"slow 1\n" in scrapes[0].result()


async def test_a_scraper_that_disconnects_affects_no_other(
    url: str, session: aiohttp.ClientSession, page: MetricsPage, arrivals: list[web.Request]
) -> None:
    source = Slow()
    page.add(source)

    async def scrape(seconds: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=seconds)
        headers = {"Accept-Encoding": "identity"}
        async with session.get(url, timeout=timeout, headers=headers) as answer:
            return await answer.read()

    impatient = asyncio.create_task(scrape(0.5))
    await arrived(arrivals, 1)
    patient = asyncio.create_task(scrape(10))
    await arrived(arrivals, 2)
    with pytest.raises(TimeoutError):
        await impatient
    source.may_answer.set()
    assert b"slow 1\n" in await patient
