"""An engine's own page, with the faults that such pages have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web

from dynamometer.exposition.render import render
from dynamometer.metrics.http_source import HttpSource
from dynamometer.runtime import addresses
from dynamometer.runtime.servers import serving

PAGE = b'# TYPE sglang:a_total counter\nsglang:a_total{x="1"} 1\n# TYPE other gauge\nother 2\n'


class Engine:
    """A page that is what the test says."""

    def __init__(self) -> None:
        self.page = PAGE
        self.status = 200
        self.delay = 0.0
        self.url = ""

    async def handle(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self.delay)
        return web.Response(body=self.page, status=self.status)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    app = web.Application()
    app.router.add_get("/metrics", made.handle)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    made.url = f"{addresses.url(listener)}/metrics"
    async with serving(app, listener):
        yield made


@pytest.fixture
async def source(engine: Engine) -> AsyncIterator[HttpSource]:
    async with aiohttp.ClientSession() as session:
        yield HttpSource(
            "engine",
            engine.url,
            session=session,
            prefixes=("sglang:",),
            labels={"model": "m", "x": "ours"},
            interval=0.1,
            deadline=0.2,
        )


async def test_its_families_come_filtered_and_labelled(source: HttpSource) -> None:
    assert source.families() == ()
    await source.fetch()
    assert render(source.families()).splitlines()[1:] == [
        b"# TYPE sglang:a_total counter",
        b'sglang:a_total{model="m",x="1"} 1',
    ]


async def test_the_same_page_gives_the_same_objects(source: HttpSource) -> None:
    await source.fetch()
    before = source.families()
    await source.fetch()
    assert source.families() is before


def break_status(engine: Engine) -> None:
    engine.status = 500


def break_text(engine: Engine) -> None:
    engine.page = PAGE + b"half a li"


def break_time(engine: Engine) -> None:
    engine.delay = 1.0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(break_status, "status"), (break_text, "invalid"), (break_time, "timeout")],
)
async def test_a_page_that_is_gone_for_two_intervals_takes_its_families_along(
    engine: Engine, source: HttpSource, fault: Callable[[Engine], None], reason: str
) -> None:
    await source.fetch()
    before = source.families()
    fault(engine)
    await source.fetch()
    assert source.errors == {reason: 1}
    assert source.families() is before  # never half a page, and not at once none
    await asyncio.sleep(0.5)
    assert source.families() == ()
    engine.page, engine.status, engine.delay = PAGE, 200, 0.0
    await source.fetch()
    assert len(source.families()) == 1


async def test_nobody_there_is_counted(source: HttpSource, engine: Engine) -> None:
    source._url = f"http://127.0.0.1:{addresses.free_port()}/metrics"
    await source.fetch()
    assert source.errors == {"unreachable": 1}
    del engine


async def test_it_is_fetched_again_and_again(source: HttpSource, engine: Engine) -> None:
    running = asyncio.create_task(source.run())
    async with asyncio.timeout(5):
        while not source.families():
            await asyncio.sleep(0.01)
        engine.page = PAGE.replace(b"} 1", b"} 7")
        while b"} 7" not in render(source.families()):
            await asyncio.sleep(0.01)
    running.cancel()
