"""`/engine_metrics` over workers whose pages the test writes."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from dynamometer.exposition.families import Family
from dynamometer.exposition.filters import Selection
from dynamometer.exposition.parser import Parsed, Parser
from dynamometer.frontend.fleet_fetches import FleetFetches
from dynamometer.frontend.fleet_page import FleetPage
from dynamometer.http.aiohttp_adapter import session
from dynamometer.metrics import scraping
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.metrics.refresh import PageRequest
from dynamometer.process.background import BackgroundThread
from dynamometer.runtime.record import Record, Role, State
from fleet_pages import FleetServer, serving_pages, worker_page
from parsing import parse
from processes import refusing_port
from waiting import run_ready_tasks, until

OWN = 0xF
ALL = PageRequest()


def worker_id(id_: int) -> str:
    return f"{id_:016x}"


@dataclass
class Scraped:
    """A frontend's page of the fleet."""

    server: FleetServer
    fetches: FleetFetches
    page: FleetPage
    records: list[Record]

    async def text(self, *names: str) -> str:
        request = PageRequest(Selection.of(names=names))
        return (await self.page.render(request)).decode()

    async def samples(self, *names: str) -> Mapping[tuple[str, str], float]:
        """Return the values by the name and the worker of each series, which has all its labels."""
        families = text_string_to_metric_families(await self.text(*names))
        return {
            (sample.name, sample.labels["worker_id"]): sample.value
            for family in families
            for sample in family.samples
        }

    async def up(self) -> dict[str, float]:
        found = await self.samples()
        return {worker: value for (name, worker), value in found.items() if name.endswith("_up")}


@pytest.fixture
async def server() -> AsyncIterator[FleetServer]:
    async with serving_pages() as made:
        yield made


@pytest.fixture
async def scraped(server: FleetServer) -> AsyncIterator[Scraped]:
    async with AsyncExitStack() as stack:
        yield await fleet(stack, server)


async def fleet(
    stack: AsyncExitStack,
    server: FleetServer,
    *,
    deadline: float = 10.0,
    page_bytes: int = 1 << 20,
    max_bytes: int = 1 << 20,
) -> Scraped:
    """Return a page over the workers of `server`, or of `Scraped.records` if it has some."""
    records: list[Record] = []

    async def processes() -> Iterable[Record]:
        return records or server.records

    client = await stack.enter_async_context(session(keepalive_seconds=30.0))
    thread = BackgroundThread("fleet")
    fetches = FleetFetches(processes, client, thread, page_bytes=page_bytes, deadline=deadline)
    stack.push_async_callback(fetches.close)
    page = FleetPage(fetches, thread, own_id=OWN, max_bytes=max_bytes)
    return Scraped(server, fetches, page, records)


async def test_the_engine_families_of_all_workers_are_on_one_page(scraped: Scraped) -> None:
    for id_ in (1, 2, 3):
        scraped.server.pages[id_] = worker_page(id_, running=id_)
    text = await scraped.text()
    found = await scraped.samples()
    for id_ in (1, 2, 3):
        assert found["sglang:num_running_reqs", worker_id(id_)] == id_
        assert found["sglang:latency_seconds_sum", worker_id(id_)] == 3.5
        assert found["dynamometer_engine_running_requests", worker_id(id_)] == id_
        assert found["dynamometer_worker_info", worker_id(id_)] == 1
        assert found["dynamometer_fleet_up", worker_id(id_)] == 1
    assert not [name for name, _ in found if name.startswith("dynamo_component")]
    headers = re.findall("^# (?:HELP|TYPE) \\S+", text, re.MULTILINE)
    assert len(headers) == len(set(headers))
    parse(text.encode())
    openmetrics = await scraped.page.render(PageRequest(openmetrics=True))
    assert parse(openmetrics, openmetrics=True)


async def test_the_series_are_those_of_the_workers_pages(scraped: Scraped) -> None:
    pages = scraped.server.pages
    for id_ in (1, 2):
        pages[id_] = worker_page(id_, running=id_)
    lines = set((await scraped.text()).splitlines())
    for id_ in (1, 2):
        page = worker_page(id_, running=id_).decode().splitlines()
        own = {line for line in page if line.startswith("sglang:")}
        # The order of labels is that of our own pages.
        rendered = {f.lines for f in parse("\n".join(own).encode())}
        assert {line for part in rendered for line in part.decode().splitlines()} <= lines


async def test_a_series_without_a_worker_gets_that_of_its_page_and_its_own_label_wins(
    scraped: Scraped,
) -> None:
    scraped.server.pages[1] = (
        b'sglang:a{x="1"} 1\nsglang:a{x="2",worker_id="own"} 2\nsglang:b{x=",worker_id="} 3\n'
    )
    scraped.server.pages[2] = worker_page(2)
    found = await scraped.samples("sglang:a", "sglang:b")
    assert {key: value for key, value in found.items() if key[0].startswith("sglang")} == {
        ("sglang:a", worker_id(1)): 1,
        ("sglang:a", "own"): 2,
        ("sglang:b", worker_id(1)): 3,
    }


async def test_versions_of_an_engine_that_disagree_about_a_type_are_both_shown(
    scraped: Scraped,
) -> None:
    scraped.server.pages[1] = worker_page(1, extra="# TYPE sglang:x gauge\nsglang:x 1\n")
    scraped.server.pages[2] = worker_page(2, extra="# TYPE sglang:x counter\nsglang:x 2\n")
    scraped.server.pages[3] = worker_page(
        3, extra='# TYPE sglang:x histogram\nsglang:x_bucket{le="+Inf"} 3\nsglang:x_count 3\n'
    )
    for openmetrics in (False, True):
        page = await scraped.page.render(PageRequest(openmetrics=openmetrics))
        values = {
            (sample.series.name, sample.series.labels["worker_id"]): sample.value
            for family in parse(page, openmetrics=openmetrics)
            for sample in family.samples
            if sample.series.name.startswith("sglang:x")
        }
        assert values == {
            ("sglang:x", worker_id(1)): "1",
            ("sglang:x", worker_id(2)): "2",
            ("sglang:x_bucket", worker_id(3)): "3",
            ("sglang:x_count", worker_id(3)): "3",
        }
    text = await scraped.text("sglang:x")
    assert text.count("# TYPE sglang:x ") == 1
    assert (await scraped.samples())["sglang:num_running_reqs", worker_id(3)] == 0


async def test_versions_that_disagree_about_the_help_have_one_help(scraped: Scraped) -> None:
    for id_, text in ((1, "old"), (2, "new")):
        extra = f"# HELP sglang:x {text}\n# TYPE sglang:x gauge\nsglang:x {id_}\n"
        scraped.server.pages[id_] = worker_page(id_, extra=extra)
    page = await scraped.text("sglang:x")
    assert re.findall("^# HELP sglang:x .*", page, re.MULTILINE) == ["# HELP sglang:x old"]


async def test_a_page_cannot_replace_the_series_of_another_worker(scraped: Scraped) -> None:
    """Worker 1 has series of worker 2, and worker 2 has one of worker 1."""
    pages = scraped.server.pages
    pages[1] = worker_page(1, running=1) + worker_page(2, running=100)
    pages[2] = worker_page(2, running=2) + worker_page(1, running=200)
    found = await scraped.samples()
    for id_ in (1, 2):
        assert found["sglang:num_running_reqs", worker_id(id_)] == id_
        assert found["dynamometer_engine_running_requests", worker_id(id_)] == id_
        assert found["sglang:latency_seconds_count", worker_id(id_)] == 2
    pages |= {1: worker_page(2, running=100), 2: worker_page(2, running=2)}
    found = await scraped.samples()
    assert found["sglang:num_running_reqs", worker_id(2)] == 2


async def test_two_exporters_of_one_engine_show_it_once(
    scraped: Scraped, caplog: pytest.LogCaptureFixture
) -> None:
    series = b'# TYPE sglang:a gauge\nsglang:a{worker_id="same"} '
    scraped.server.pages |= {1: series + b"1\n", 2: series + b"2\n"}
    for _ in range(2):
        text = await scraped.text()
        assert text.count("sglang:a{") == 1
    (logged,) = [one for one in caplog.records if "same worker_id" in one.getMessage()]
    assert worker_id(2) in logged.getMessage()
    assert 'errors_total{reason="overlap",source="fleet",worker_id="000000000000000f"} 2' in text


# Faults of workers.

HUGE = b"sglang:a 1\n" * (200 << 10)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"half a li", "line 1 of the text page"),
        (b"sglang:a 1\nnot a sample at all {\nsglang:b 2\n", "line 2 of the text page"),
        (b"sglang:a 1\nsglang:b{x=\xff} 2\n", "line 2"),
        (b"sglang:a 1\nsglang:b 1\nsglang:a 2\n", "sglang:a{worker_id="),
        (b'sglang:a 1\nsglang:a{worker_id="0000000000000002"} 2\n', "is twice on the page"),
        (b"# TYPE sglang:a gauge\nsglang:a 1\nsglang:a 1\n", "is twice on the page"),
        (b"<html>a proxy's error page</html>", "HTML"),
        (HUGE, "more than 1024 KiB"),
        (web.Response(status=500, body=b"sglang:a 1\n"), "500 Internal Server Error"),
        (web.Response(status=404), "404 Not Found"),
    ],
    ids=[
        "text",
        "one line",
        "not UTF-8",
        "twice",
        "twice with its label",
        "same twice",
        "HTML",
        "huge",
        "status",
        "path",
    ],
)
async def test_a_page_with_a_fault_is_omitted_and_logged_once(
    scraped: Scraped,
    caplog: pytest.LogCaptureFixture,
    page: bytes | web.Response,
    message: str,
) -> None:
    caplog.set_level(logging.INFO, "dynamometer")
    scraped.server.pages |= {1: worker_page(1), 2: page}
    for _ in range(3):
        assert await scraped.up() == {worker_id(1): 1, worker_id(2): 0}
        found = await scraped.samples()
        assert not [key for key in found if key[0].startswith("sglang:") and "2" in key[1]]
    assert len([one for one in caplog.records if worker_id(2) in one.getMessage()]) == 1
    assert message in caplog.text
    scraped.server.pages[2] = worker_page(2)
    assert await scraped.up() == {worker_id(1): 1, worker_id(2): 1}
    assert "can be read again" in caplog.messages[-1]
    assert len([one for one in caplog.records if worker_id(2) in one.getMessage()]) == 2


async def test_selected_families_do_not_end_the_fault_of_a_whole_page(
    scraped: Scraped, caplog: pytest.LogCaptureFixture
) -> None:
    """A page may be too large, and a selection of its families not: this is one fault."""
    caplog.set_level(logging.INFO, "dynamometer")
    for _ in range(3):
        scraped.server.pages[1] = HUGE
        assert await scraped.up() == {worker_id(1): 0}
        scraped.server.pages[1] = worker_page(1)
        assert await scraped.samples("sglang:num_running_reqs")
    (logged,) = [one for one in caplog.records if worker_id(1) in one.getMessage()]
    assert "is omitted" in logged.getMessage()
    assert await scraped.up() == {worker_id(1): 1}
    assert "can be read again" in caplog.messages[-1]


async def test_the_time_of_the_last_success_stays_while_a_page_has_a_fault(
    scraped: Scraped,
) -> None:
    scraped.server.pages |= {1: worker_page(1, running=5), 2: b"never a page"}
    started = time.time()
    found = await scraped.samples()
    key = ("dynamometer_fleet_last_success_timestamp_seconds", worker_id(1))
    assert started <= found[key] <= time.time()
    scraped.server.pages[1] = b"not a page any longer"
    later = await scraped.samples()
    assert later[key] == found[key]
    assert (key[0], worker_id(2)) not in later
    assert ("sglang:num_running_reqs", worker_id(1)) not in later  # no old values


async def test_a_late_worker_is_omitted_at_the_deadline(server: FleetServer) -> None:
    server.pages |= {1: worker_page(1), 2: worker_page(2)}
    server.late.add(2)
    async with AsyncExitStack() as stack:
        scraped = await fleet(stack, server, deadline=0.5)
        started = time.monotonic()
        assert await scraped.up() == {worker_id(1): 1, worker_id(2): 0}
        assert time.monotonic() - started < 5
        server.late.clear()
        assert await scraped.up() == {worker_id(1): 1, worker_id(2): 1}


async def test_a_page_that_takes_too_long_to_parse_is_late(server: FleetServer) -> None:
    lines = "".join(f'sglang:a{{x="{number}"}} 1\n' for number in range(300_000))
    server.pages |= {1: worker_page(1), 2: lines.encode()}
    async with AsyncExitStack() as stack:
        scraped = await fleet(stack, server, deadline=0.3, page_bytes=16 << 20, max_bytes=64 << 20)
        started = time.monotonic()
        assert (await scraped.up())[worker_id(2)] == 0
        assert time.monotonic() - started < 5


async def test_large_pages_do_not_delay_the_pages_of_other_workers(server: FleetServer) -> None:
    large = f'sglang:a{{x="{"x" * 300_000}"}} 1\n'.encode()
    server.pages |= {1: worker_page(1), 2: large, 3: worker_page(3)}
    end = threading.Event()
    async with AsyncExitStack() as stack:
        scraped = await fleet(stack, server, deadline=2.0)
        busy = scraped.fetches._thread_of_large.submit(end.wait)
        try:
            up = await scraped.up()
        finally:
            end.set()
        assert up == {worker_id(1): 1, worker_id(2): 0, worker_id(3): 1}
        await busy
        assert (await scraped.up())[worker_id(2)] == 1


async def test_a_large_page_leaves_time_for_another_large_one(
    server: FleetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages |= {id_: f'sglang:a{{x="{str(id_) * 300_000}"}} 1\n'.encode() for id_ in (1, 2)}
    server.delayed[2] = 0.05
    parse_page = Parser.parse

    def parse_slowly(
        parser: Parser, page: bytes, content_type: str = "", *, until: float
    ) -> Parsed:
        if b"111" in page:
            time.sleep(max(0.0, until - time.monotonic()))
        return parse_page(parser, page, content_type, until=until)

    monkeypatch.setattr(Parser, "parse", parse_slowly)
    async with AsyncExitStack() as stack:
        scraped = await fleet(stack, server, deadline=3.0)
        assert await scraped.up() == {worker_id(1): 0, worker_id(2): 1}


async def test_a_page_with_too_many_short_lines_is_too_large(
    scraped: Scraped, caplog: pytest.LogCaptureFixture
) -> None:
    scraped.server.pages |= {1: worker_page(1), 2: b"sglang:a 1\n" * 50_001}
    assert await scraped.up() == {worker_id(1): 1, worker_id(2): 0}
    assert "more than 50,000 lines" in caplog.text


async def test_a_process_without_a_page_or_a_listener_is_down(
    scraped: Scraped, caplog: pytest.LogCaptureFixture
) -> None:
    server = scraped.server
    server.pages[1] = worker_page(1)
    refused = f"http://127.0.0.1:{refusing_port()}"
    scraped.records += [
        server.record(1, state=State.FAILED),
        server.record(2, system_url=None),
        server.record(3, system_url=refused, state=State.UNRESPONSIVE),
        server.record(4, system_url="http://no-such-host.invalid:1"),
    ]
    up = await scraped.up()
    assert up == {worker_id(1): 1} | dict.fromkeys(map(worker_id, (2, 3, 4)), 0)
    assert "--system-port is -1" in caplog.text
    assert "Connection refused" in caplog.text


async def test_workers_of_every_state_and_role_are_read(scraped: Scraped) -> None:
    server = scraped.server
    for number, state in enumerate(State, 1):
        server.pages[number] = worker_page(number)
        role = Role.EXPORTER if number % 2 else Role.WORKER
        scraped.records.append(server.record(number, state=state, role=role))
    assert set((await scraped.up()).values()) == {1}


async def test_a_worker_that_left_is_forgotten(scraped: Scraped) -> None:
    scraped.server.pages |= {1: worker_page(1), 2: worker_page(2)}
    await scraped.up()
    del scraped.server.pages[2]
    assert await scraped.up() == {worker_id(1): 1}
    assert len(scraped.fetches._readers) == 1


async def test_an_empty_fleet_has_a_valid_page(scraped: Scraped) -> None:
    assert await scraped.samples() == {
        ("dynamometer_engine_scrape_errors_total", worker_id(OWN)): 0
    }


# Sharing, and the requests to workers.


async def test_scrapes_at_one_time_share_one_fetch(scraped: Scraped) -> None:
    server = scraped.server
    server.pages |= {1: worker_page(1), 2: worker_page(2)}
    server.open.clear()
    requests = [ALL, PageRequest(openmetrics=True), PageRequest(gzip=True), ALL]
    requests.append(PageRequest(Selection.of(names=["sglang:num_running_reqs"])))
    scrapes = [asyncio.create_task(scraped.page.render(request)) for request in requests]
    await until(lambda: len(server.requested) == 2)
    scrapes.append(asyncio.create_task(scraped.page.render(ALL)))
    await run_ready_tasks()
    server.open.set()
    pages = await asyncio.gather(*scrapes)
    assert sorted(server.requested) == [(1, ""), (2, "")]
    assert pages[0] == pages[3] == pages[5] == gzip.decompress(pages[2])
    assert pages[1].endswith(b"# EOF\n")
    assert b"latency" not in pages[4]
    await scraped.page.render(ALL)
    assert len(server.requested) == 4


async def test_scrapes_of_many_different_names_share_three_fetches(scraped: Scraped) -> None:
    """Each fetch has a connection to every worker."""
    server = scraped.server
    server.pages |= {1: worker_page(1), 2: worker_page(2, extra="sglang:n7 7\n")}
    server.open.clear()
    scrapes = [asyncio.create_task(scraped.text(f"sglang:n{number}")) for number in range(40)]
    await until(lambda: len(server.requested) == 6)
    scrapes.append(asyncio.create_task(scraped.text("sglang:n40")))
    await run_ready_tasks()
    server.open.set()
    pages = await asyncio.gather(*scrapes)
    assert len(server.requested) == 6
    assert [number for number, page in enumerate(pages) if "sglang:n" in page] == [7]


async def test_a_scraper_that_leaves_does_not_end_the_fetch_of_the_others(
    scraped: Scraped,
) -> None:
    server = scraped.server
    server.pages[1] = worker_page(1)
    server.open.clear()
    first, second = (asyncio.create_task(scraped.page.render(ALL)) for _ in range(2))
    await until(lambda: server.requested)
    first.cancel()
    await asyncio.wait([first])
    server.open.set()
    assert b"sglang:num_running_reqs" in await second
    assert len(server.requested) == 1


async def test_nothing_is_requested_without_a_scrape(scraped: Scraped) -> None:
    scraped.server.pages[1] = worker_page(1)
    await run_ready_tasks()
    assert scraped.server.requested == []
    await scraped.page.render(ALL)
    await run_ready_tasks()
    assert len(scraped.server.requested) == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "pages of the fleet"]


async def test_connections_to_workers_are_used_again(scraped: Scraped) -> None:
    scraped.server.pages |= {1: worker_page(1)}
    for _ in range(4):
        await scraped.page.render(ALL)
    assert len(scraped.server.connections) == 1


async def test_workers_are_asked_for_the_requested_names_only(scraped: Scraped) -> None:
    registry = InstrumentRegistry()
    page = MetricsPage(registry)
    page.add(Fixed(worker_page(1, running=4)))
    scraped.server.pages[1] = page
    found = await scraped.samples("sglang:num_running_reqs", "dynamometer_fleet_up")
    assert found == {
        ("sglang:num_running_reqs", worker_id(1)): 4,
        ("dynamometer_fleet_up", worker_id(1)): 1,
    }
    expected = "name[]=dynamometer_fleet_up&name[]=sglang:num_running_reqs"
    assert scraped.server.requested == [(1, expected)]
    # A histogram is selected by the name of any of its samples.
    found = await scraped.samples("sglang:latency_seconds_count")
    assert len({name for name, _ in found}) == 3
    names = [f"sglang:num_{number}" for number in range(2000)]
    await scraped.text(*names)
    assert scraped.server.requested[-1] == (1, "")  # too long for a request


class Fixed:
    """A source with the families of a page."""

    name = owner = "engine"
    errors: Mapping[str, int] = {}

    def __init__(self, page: bytes) -> None:
        self._families = parse(page)

    def families(self) -> Sequence[Family]:
        return self._families


# The size of the page, its format, and the event loop.


async def test_the_largest_families_of_a_page_that_is_too_large_are_omitted(
    server: FleetServer, caplog: pytest.LogCaptureFixture
) -> None:
    large = "".join(f'sglang:large{{x="{number}"}} 1\n' for number in range(100))
    server.pages |= {id_: worker_page(id_, running=id_, extra=large) for id_ in (1, 2)}
    async with AsyncExitStack() as stack:
        scraped = await fleet(stack, server, max_bytes=4000)
        for number in (1, 2):
            found = await scraped.samples()
            assert len((await scraped.text()).encode()) <= 4000
            # The family of all workers is omitted, not that of one worker.
            assert not [name for name, _ in found if name == "sglang:large"]
            assert found["sglang:num_running_reqs", worker_id(2)] == 2
            counted = found["dynamometer_engine_scrape_errors_total", worker_id(OWN)]
            assert counted == 2 * number - 1
        logged = [one.getMessage() for one in caplog.records if "sglang:large" in one.getMessage()]
        assert len(logged) == 1
        assert "--max-page-bytes" in logged[0]
        # A selected page does not show that the family fits again.
        assert "sglang:num_running_reqs" in await scraped.text("sglang:num_running_reqs")
        assert "is on the page again" not in caplog.text


async def test_pages_are_parsed_and_rendered_in_another_thread(
    scraped: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    scraped.server.pages[1] = worker_page(1)
    threads = set()
    assemble = scraped.page._assemble

    def note(fetched: object) -> object:
        threads.add(threading.current_thread())
        return assemble(fetched)  # type: ignore[arg-type]

    monkeypatch.setattr(scraped.page, "_assemble", note)
    await scraped.page.render(ALL)
    assert threads
    assert threading.main_thread() not in threads


async def test_the_response_is_negotiated_as_on_other_pages(scraped: Scraped) -> None:
    scraped.server.pages[1] = worker_page(1)
    body, headers = await scraping.answer(
        scraped.page.render,
        accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
        accept_encoding="gzip",
        names=["sglang:num_running_reqs"],
    )
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert gzip.decompress(body).endswith(b"# EOF\n")
