"""Refreshes of the page after their callers stopped waiting, while a source hangs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.exposition.families import Family, Metadata
from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics import scraping
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.metrics.refresh import PageRequest
from dynamometer.runtime import DistributedRuntime
from processes import true_in_fork
from stack import eventually

BOUND_SECONDS = 20.0


class Hang:
    """A callback that hangs until it is released, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Event()
        self.released = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.entered.set()
        self.released.wait()


@pytest.fixture
def hang() -> Iterator[Hang]:
    made = Hang()
    yield made
    made.released.set()


def with_callback(callback: Hang, *, deadline: float) -> DistributedRuntime:
    made = DistributedRuntime(deadline=deadline)
    made.metrics.register_callback(callback)
    made.metrics.create_gauge("fine", "f").set(3)
    return made


@pytest.fixture
def runtime(hang: Hang) -> DistributedRuntime:
    return with_callback(hang, deadline=1)


def within_bound(render: Callable[[], bytes]) -> bytes:
    """Call `render` in a thread that the test can abandon."""
    pages: list[bytes] = []
    thread = threading.Thread(target=lambda: pages.append(render()), daemon=True)
    thread.start()
    thread.join(BOUND_SECONDS)
    assert pages, f"render() has not returned within {BOUND_SECONDS} s"
    return pages[0]


def timeouts(page: bytes) -> float:
    (found,) = [
        sample.value
        for family in parse(page.decode())
        for sample in family.samples
        if sample.name == "dynamometer_engine_scrape_errors_total"
        and sample.labels == {"source": "callback Hang", "reason": "timeout"}
    ]
    return found


def assert_whole(runtime: DistributedRuntime, hang: Hang) -> None:
    """The page is rendered twice without the source that hangs, which is called once."""
    for times in (1, 2):
        page = within_bound(runtime.metrics.render)
        assert b"dynamo_component_fine 3.0" in page
        assert timeouts(page) >= times
    assert hang.calls == 1
    hang.released.set()
    eventually(
        lambda: hang.calls > 1 or not runtime.metrics.render(),
        within=BOUND_SECONDS,
        what="the source is asked again once it has returned",
    )


def test_a_refresh_without_a_waiting_caller_blocks_no_other(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    runtime.page.submit()
    assert hang.entered.wait(BOUND_SECONDS)
    assert_whole(runtime, hang)


def test_many_refreshes_without_waiting_callers_block_no_other(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    for _ in range(20):
        runtime.page.submit()
    assert_whole(runtime, hang)


async def test_a_scraper_that_goes_away_blocks_no_render(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    app = web.Application()
    scraping.add_route(app, runtime.page)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener), aiohttp.ClientSession() as session:
        timeout = aiohttp.ClientTimeout(total=0.1)
        with pytest.raises(TimeoutError):
            await session.get(f"{addresses.url(listener)}/metrics", timeout=timeout)
        await asyncio.to_thread(assert_whole, runtime, hang)


async def test_a_server_that_ends_during_a_scrape_leaves_no_task_and_blocks_no_render(
    hang: Hang,
) -> None:
    runtime = with_callback(hang, deadline=3)  # longer than the end of the server takes
    app = web.Application()
    scraping.add_route(app, runtime.page)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    before = asyncio.all_tasks()
    async with aiohttp.ClientSession() as session:
        async with serving(app, listener):
            scrape = asyncio.create_task(session.get(f"{addresses.url(listener)}/metrics"))
            assert await asyncio.to_thread(hang.entered.wait, BOUND_SECONDS)
        assert asyncio.all_tasks() - before <= {scrape}
        with pytest.raises(aiohttp.ClientError):
            await scrape
    await asyncio.to_thread(assert_whole, runtime, hang)


def test_a_server_that_is_closed_during_a_scrape_blocks_no_render(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    with runtime.serve(port=0) as server:
        command = [sys.executable, "-c", "import sys, urllib.request as u; u.urlopen(sys.argv[1])"]
        scrape = subprocess.Popen([*command, f"{server.url}/metrics"], stderr=subprocess.DEVNULL)
        assert hang.entered.wait(BOUND_SECONDS)
    scrape.wait(BOUND_SECONDS)
    assert_whole(runtime, hang)


INTERRUPTED = """
import os, signal, threading
from dynamometer.runtime import DistributedRuntime
runtime = DistributedRuntime(deadline=1)
entered, never = threading.Event(), threading.Event()
runtime.metrics.register_callback(lambda: (entered.set(), never.wait()))
runtime.metrics.create_gauge("fine", "f").set(3)
def interrupt():
    entered.wait()
    os.kill(os.getpid(), signal.SIGINT)
for _ in range(3):
    try:
        threading.Thread(target=interrupt).start()
        while True:
            runtime.metrics.render()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print(runtime.metrics.render().decode())
"""


def test_ctrl_c_during_render_blocks_no_later_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=True,
    )
    assert done.stdout.count("interrupted\n") == 3
    assert "dynamo_component_fine 3.0" in done.stdout


def test_one_thread_is_abandoned_for_each_source_that_hangs(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    before = set(threading.enumerate())
    other = Hang()
    runtime.metrics.register_callback(other)
    try:
        for _ in range(10):
            runtime.page.submit()
            within_bound(runtime.metrics.render)
        eventually(
            lambda: len(set(threading.enumerate()) - before) == 3,
            within=BOUND_SECONDS,
            what="two threads are left behind, and one asks the other sources",
        )
        assert (hang.calls, other.calls) == (1, 1)
    finally:
        other.released.set()


def test_a_child_of_fork_asks_a_source_that_hangs_in_its_parent(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    runtime.page.submit()
    assert hang.entered.wait(BOUND_SECONDS)

    def child() -> bool:
        hang.released = threading.Event()
        hang.released.set()
        page = runtime.metrics.render()
        return hang.calls == 2 and timeouts(page) == 0

    assert true_in_fork(child, within=BOUND_SECONDS)


class HeldInMerge(list[Family]):
    """Families that stop the thread that merges them, not the thread that reads them."""

    def __init__(self) -> None:
        super().__init__(
            [Family(Metadata("held", "gauge", "h"), frozenset({"held"}), (b"held 1\n",))]
        )
        self.merging = self.stops = False
        self.entered, self.released = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Family]:
        if self.merging and self.stops:
            self.entered.set()
            self.released.wait()
        return super().__iter__()


class HeldSource:
    """A source of `HeldInMerge`: the page reads its errors last before it merges."""

    def __init__(self, held: HeldInMerge) -> None:
        self.name = self.owner = "held"
        self._held = held

    def families(self) -> Sequence[Family]:
        self._held.merging = False
        return self._held

    @property
    def errors(self) -> Mapping[str, int]:
        self._held.merging = True
        return {}


def test_a_child_that_is_forked_during_a_merge_renders_the_page() -> None:
    runtime = DistributedRuntime(deadline=1)
    held = HeldInMerge()
    runtime.metrics.register_source(HeldSource(held))
    held.stops = True
    runtime.page.submit()
    assert held.entered.wait(BOUND_SECONDS)

    def child() -> bool:
        held.stops = False
        return b"\nheld 1\n" in runtime.metrics.render()

    try:
        assert true_in_fork(child, within=BOUND_SECONDS)
    finally:
        held.released.set()


def test_waiting_for_several_at_once_costs_one_deadline(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    pages: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: pages.append(runtime.metrics.render()), daemon=True)
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_SECONDS)
    assert len(pages) == 20
    assert hang.calls == 1


def test_a_render_inside_an_abandoned_source_returns(
    runtime: DistributedRuntime, hang: Hang
) -> None:
    rendered: list[bytes] = []

    def slow() -> None:
        if not rendered:
            hang.released.wait()
            rendered.append(runtime.metrics.render())

    runtime.metrics.register_callback(slow)
    within_bound(runtime.metrics.render)
    hang.released.set()
    eventually(lambda: rendered, within=BOUND_SECONDS, what="the inner page is there")


def test_a_refresh_ends_although_the_page_fails(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    page = MetricsPage(InstrumentRegistry())
    monkeypatch.setattr(page, "update", broken)
    monkeypatch.setattr(page, "merge", broken)
    assert page.submit().result(BOUND_SECONDS) == b""
    assert "the families of a source cannot be used" in caplog.text
    assert "the page cannot be merged" in caplog.text


def test_simultaneous_refreshes_are_one(hang: Hang) -> None:
    runtime = DistributedRuntime(deadline=60)
    runtime.metrics.register_callback(hang)
    refreshes = [runtime.page.submit(PageRequest()) for _ in range(20)]
    assert hang.entered.wait(BOUND_SECONDS)
    hang.released.set()
    for refresh in refreshes:
        assert b"dynamo_component_uptime_seconds" in refresh.result(BOUND_SECONDS)
    assert hang.calls <= 2
