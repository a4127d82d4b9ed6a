"""An engine's own page, with the faults of such pages."""

from __future__ import annotations

import asyncio
import gzip
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from dynamometer.exposition.label_bounds import ClientLabels, LabelBounds, LabelLimits
from dynamometer.exposition.parser import Parsed, Parser
from dynamometer.exposition.rendering import render
from dynamometer.exposition.totals import Totals
from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics.http_source import HttpSource
from processes import refusing_port

PAGE = b'# TYPE sglang:a_total counter\nsglang:a_total{x="1"} 1\n# TYPE other gauge\nother 2\n'


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


class Engine:
    """A page whose content the test chooses."""

    def __init__(self) -> None:
        self.page = PAGE
        self.status = 200
        self.delay = 0.0
        self.url = ""
        self.headers: dict[str, str] = {}

    async def handle(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self.delay)
        return web.Response(body=self.page, status=self.status, headers=self.headers)


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


async def test_the_families_are_filtered_and_labelled(source: HttpSource) -> None:
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
    await until(lambda: source.families() == ())
    engine.page, engine.status, engine.delay = PAGE, 200, 0.0
    await source.fetch()
    assert len(source.families()) == 1


async def test_a_refused_connection_is_counted(source: HttpSource, engine: Engine) -> None:
    source.url = f"http://127.0.0.1:{refusing_port()}/metrics"
    await source.fetch()
    assert source.errors == {"unreachable": 1}
    del engine


def raw_deflate(page: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(page) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", lambda page: gzip.compress(page[:9]) + gzip.compress(page[9:])),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("gzip, deflate", lambda page: zlib.compress(gzip.compress(page))),
        ("identity", bytes),
    ],
)
async def test_a_page_that_is_compressed_without_request_is_decoded(
    engine: Engine, source: HttpSource, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    engine.page, engine.headers = compress(PAGE), {"Content-Encoding": encoding}
    await source.fetch()
    assert not source.fault
    assert b'sglang:a_total{model="m",x="1"} 1' in render(source.families())


@pytest.mark.parametrize(
    ("encoding", "page", "message"),
    [
        ("br", b"\x0b\x02", "Content-Encoding 'br' is not supported"),
        ("zstd", b"\x28\xb5\x2f\xfd", "Content-Encoding 'zstd' is not supported"),
        ("gzip", PAGE, "not gzip"),
        ("deflate", PAGE, "not deflate"),
        ("gzip", gzip.compress(PAGE)[:-9], "truncated"),
    ],
)
async def test_a_page_that_cannot_be_decoded_is_a_fault_that_names_the_encoding(
    engine: Engine, source: HttpSource, encoding: str, page: bytes, message: str
) -> None:
    engine.page, engine.headers = page, {"Content-Encoding": encoding}
    await source.fetch()
    assert source.errors == {"invalid": 1}
    assert message in source.fault


async def test_errors_that_were_read_do_not_change(engine: Engine, source: HttpSource) -> None:
    """The page's thread iterates over them while the event loop counts the next one."""
    before = source.errors
    engine.status = 500
    await source.fetch()
    during = source.errors
    engine.delay = 1.0
    await source.fetch()
    assert (before, during) == ({}, {"status": 1})
    assert source.errors == {"status": 1, "timeout": 1}


async def test_the_page_is_fetched_at_each_interval(source: HttpSource, engine: Engine) -> None:
    running = asyncio.create_task(source.run())
    await until(source.families)
    engine.page = PAGE.replace(b"} 1", b"} 7")
    await until(lambda: b"} 7" in render(source.families()))
    running.cancel()


class Server:
    """An engine at a fixed address, which the test starts and stops."""

    def __init__(self) -> None:
        self.port = addresses.free_port()
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.answer.set()
        self._page = b""
        self._running = AsyncExitStack()

    async def start(self, counter: int, count: int, gauge: int, *, began: int = 0) -> None:
        """Start an engine with these counts."""
        self.count(counter, count, gauge, began=began)
        app = web.Application()
        app.router.add_get("/metrics", self._handle)
        listener = addresses.listen("127.0.0.1", self.port, setting="")
        await self._running.enter_async_context(serving(app, listener))

    async def stop(self) -> None:
        await self._running.aclose()

    def count(self, counter: int, count: int, gauge: int, *, began: int = 0) -> None:
        start = f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {began}\n"
        self._page = (
            (start if began else "") + f"# TYPE a_total counter\na_total {counter}\n"
            f'# TYPE h histogram\nh_bucket{{le="+Inf"}} {count}\nh_count {count}\nh_sum {count}\n'
            f"# TYPE g gauge\ng {gauge}\n"
        ).encode()

    async def _handle(self, _: web.Request) -> web.Response:
        page = self._page
        self.asked.set()
        await self.answer.wait()
        return web.Response(body=page)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    await made.stop()


@pytest.fixture
async def continued(server: Server) -> AsyncIterator[HttpSource]:
    async with aiohttp.ClientSession() as session:
        yield HttpSource(
            "engine",
            f"http://127.0.0.1:{server.port}/metrics",
            session=session,
            labels={"m": "n"},
            totals=Totals(),
            interval=0.1,
            deadline=0.2,
        )


def values(source: HttpSource) -> dict[str, float]:
    """Return the values by series."""
    samples = [
        line.decode().rpartition(" ")
        for line in render(source.families()).splitlines()
        if not line.startswith(b"#")
    ]
    return {series: float(value) for series, _, value in samples}


def began(time: int) -> dict[str, float]:
    return {'process_start_time_seconds{m="n"}': time}


def totals_of(counter: int, count: int) -> dict[str, float]:
    return {
        'a_total{m="n"}': counter,
        'h_bucket{le="+Inf",m="n"}': count,
        'h_count{m="n"}': count,
        'h_sum{m="n"}': count,
    }


async def test_totals_stay_without_the_engine_and_continue_with_the_next_one(
    server: Server, continued: HttpSource
) -> None:
    assert continued.families() == ()
    await server.start(5, 3, 1)
    await continued.fetch()
    assert values(continued) == totals_of(5, 3) | {'g{m="n"}': 1}
    await server.stop()
    await continued.fetch()
    assert continued.errors == {"unreachable": 1}
    assert 'g{m="n"}' in values(continued)  # not at once
    await until(lambda: 'g{m="n"}' not in values(continued))
    assert values(continued) == totals_of(5, 3)
    assert continued.families() is continued.families()
    await server.start(1, 0, 2)
    await continued.fetch()
    assert values(continued) == totals_of(6, 3) | {'g{m="n"}': 2}
    await server.stop()
    await until(lambda: 'g{m="n"}' not in values(continued))
    assert values(continued) == totals_of(6, 3)


async def test_a_later_start_time_on_the_page_is_a_restart(
    server: Server, continued: HttpSource
) -> None:
    await server.start(5, 3, 1, began=100)
    await continued.fetch()
    server.count(5, 4, 1, began=200)
    await continued.fetch()
    assert values(continued) == totals_of(10, 7) | began(200) | {'g{m="n"}': 1}
    server.count(6, 4, 1, began=200)
    await continued.fetch()
    assert values(continued) == totals_of(11, 7) | began(200) | {'g{m="n"}': 1}


async def test_a_page_that_continues_its_counts_is_not_counted_twice(
    server: Server, continued: HttpSource
) -> None:
    await server.start(5, 3, 1)
    await continued.fetch()
    await server.stop()
    continued.note_end()
    assert values(continued) == totals_of(5, 3)
    await server.start(5, 4, 1)
    await continued.fetch()
    assert values(continued) == totals_of(5, 4) | {'g{m="n"}': 1}


async def test_a_page_that_was_requested_before_a_restart_is_omitted(
    server: Server, continued: HttpSource
) -> None:
    await server.start(5, 3, 1)
    await continued.fetch()
    server.count(8, 9, 1)
    server.asked.clear()
    server.answer.clear()
    fetching = asyncio.create_task(continued.fetch())
    await server.asked.wait()
    continued.note_end()
    server.answer.set()
    await fetching
    assert values(continued) == totals_of(5, 3)  # and no gauge of an engine that has ended
    assert not continued.errors
    server.count(1, 2, 1)  # by now another engine's
    await continued.fetch()
    assert values(continued) == totals_of(6, 5) | {'g{m="n"}': 1}


async def test_a_page_that_is_parsed_at_an_end_brings_no_gauge_back(
    server: Server, continued: HttpSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing, noted = threading.Event(), threading.Event()
    parse = Parser.parse

    def slow(parser: Parser, page: bytes, content_type: str = "") -> Parsed:
        parsing.set()
        assert noted.wait(10)
        return parse(parser, page, content_type)

    await server.start(5, 3, 1)
    monkeypatch.setattr(Parser, "parse", slow)
    fetching = asyncio.create_task(continued.fetch())
    await asyncio.to_thread(parsing.wait, 10)
    continued.note_end()
    noted.set()
    await fetching
    assert values(continued) == totals_of(5, 3)
    await continued.fetch()
    assert values(continued) == totals_of(5, 3) | {'g{m="n"}': 1}


async def test_one_odd_page_makes_no_total(server: Server, continued: HttpSource) -> None:
    await server.start(100, 40, 1, began=1000)
    await continued.fetch()
    for counter, count, start in ((99, 40, 1000), (100, 39, 1000), (100, 0, 1000), (100, 40, 1001)):
        server.count(counter, count, 1, began=start)
        await continued.fetch()
        assert values(continued) == totals_of(100, 40) | began(start) | {'g{m="n"}': 1}


async def test_with_totals_the_same_page_gives_the_same_objects(
    server: Server, continued: HttpSource
) -> None:
    for counter in (5, 1):  # before a restart, and after it
        await server.start(counter, 0, 1)
        await continued.fetch()
        before = continued.families()
        await continued.fetch()
        assert continued.families() is before
        await server.stop()


def client_page(values: int, *, amount: int = 1) -> bytes:
    """Return a page with a counter and a gauge for each value of a client's label."""
    text = b"# TYPE sglang:c_total counter\n"
    text += b"".join(b'sglang:c_total{endpoint="/%d"} %d\n' % (n, amount) for n in range(values))
    text += b'# TYPE sglang:g gauge\nsglang:g{endpoint="/1"} 5\n'
    return text + b'sglang:g{model="%s"} 6\n' % (b"x" * 100)


@pytest.fixture
async def bounded(engine: Engine) -> AsyncIterator[HttpSource]:
    bounds = LabelBounds(
        ClientLabels(prefixes=("sglang:",), names=frozenset({"endpoint"})),
        LabelLimits(max_values=3, max_bytes=50),
    )
    async with aiohttp.ClientSession() as session:
        yield HttpSource(
            "engine", engine.url, session=session, labels={"endpoint": "ours"},
            totals=Totals(), label_bounds=bounds, interval=0.01,
        )  # fmt: skip


async def test_later_values_of_a_client_count_in_one_series(
    engine: Engine, bounded: HttpSource, caplog: pytest.LogCaptureFixture
) -> None:
    engine.page = client_page(100)
    await bounded.fetch()
    page = render(bounded.families())
    assert b'sglang:c_total{endpoint="other"} 97.0' in page
    assert page.count(b"sglang:c_total{") == 4
    assert b'sglang:g{endpoint="/1"} 5' in page
    assert b"xxx" not in page
    engine.page = client_page(50)  # a restarted engine
    for _ in range(2):
        await bounded.fetch()
    assert b'sglang:c_total{endpoint="other"} 144.0' in render(bounded.families())
    assert bounded.errors == {"label_bytes": 3}
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "1 series dropped; label model of sglang:g" in m] == messages


async def test_a_page_that_takes_long_to_read_is_fetched_less_often(
    engine: Engine, bounded: HttpSource
) -> None:
    assert bounded.interval == 0.01
    engine.page = client_page(20_000)
    await bounded.fetch()
    slow = bounded.interval
    assert slow > 0.1
    assert bounded.families()  # current until a fetch after that interval could have failed
    engine.page = client_page(2)
    await bounded.fetch()
    assert bounded.interval < slow / 2
