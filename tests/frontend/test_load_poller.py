"""The load on workers' pages, and the choices of a router that reads it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import Gauge

from dynamometer.frontend.load_poller import LoadPoller
from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics import scraping
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import engine_load
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.record import Record, Role, State
from stack import Stack, Worker, eventually
from stack import http as fetch
from waiting import until

BUSY, IDLE = 1, 2


class WorkerPage:
    """A worker's page, with gauges that the test sets."""

    def __init__(self) -> None:
        instruments = InstrumentRegistry()
        self.running = Gauge(engine_load.RUNNING_REQUESTS, "running", registry=instruments)
        self.queued = Gauge(engine_load.QUEUED_REQUESTS, "queued", registry=instruments)
        Gauge("something_else", "never asked for", registry=instruments).set(1000)
        self.page = MetricsPage(instruments)
        self.url = ""
        self.asked: list[str] = []
        self.fault: web.Response | None = None
        self.delay = 0.0

    @web.middleware
    async def middleware(self, request: web.Request, handler: object) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        await asyncio.sleep(self.delay)
        if self.fault is not None:
            return web.Response(body=self.fault.body, status=self.fault.status)
        return await handler(request)  # type: ignore[operator, no-any-return]


@pytest.fixture
async def page() -> AsyncIterator[WorkerPage]:
    made = WorkerPage()
    app = web.Application(middlewares=[made.middleware])
    scraping.add_route(app, made.page)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    made.url = addresses.url(listener)
    async with serving(app, listener):
        yield made


def worker(id_: int, system_url: str | None) -> Record:
    return Record(
        role=Role.WORKER, id=id_, namespace="n", component="c", models=("m",),
        request_url="http://127.0.0.1:1", system_url=system_url, state=State.READY,
    )  # fmt: skip


@pytest.fixture
def router(page: WorkerPage) -> Router:
    """A router over one worker with a page, and one without."""
    made = Router(RouterMode.LEAST_LOADED, Fleet())
    made.fleet.update([worker(BUSY, page.url), worker(IDLE, None)])
    return made


@pytest.fixture
async def poller(router: Router) -> AsyncIterator[LoadPoller]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield LoadPoller(router, session, interval=0.01, deadline=0.3, stale=0.0)


def choices(router: Router) -> set[int]:
    return {record.id for _ in range(4) if (record := router.choose("m"))}


async def test_requests_of_others_count(
    page: WorkerPage, router: Router, poller: LoadPoller
) -> None:
    page.running.set(1)
    page.queued.set(2)
    await poller.poll()
    assert choices(router) == {IDLE}
    with router.carrying(worker(IDLE, None)), router.carrying(worker(IDLE, None)):
        assert choices(router) == {IDLE}
        with router.carrying(worker(IDLE, None)):
            assert choices(router) == {BUSY, IDLE}
    names = "&".join(f"name[]={name}" for name in (page.running._name, page.queued._name))
    assert page.asked == [f"/metrics?{names}".replace("[]", "%5B%5D")]


async def test_own_requests_are_not_counted_twice(
    page: WorkerPage, router: Router, poller: LoadPoller
) -> None:
    own = worker(BUSY, page.url)
    with router.carrying(own), router.carrying(own):
        page.running.set(3)
        await poller.poll()
    # One of the three requests was from another client, and still counts.
    with router.carrying(worker(IDLE, None)):
        assert choices(router) == {BUSY, IDLE}


async def test_fewer_requests_than_own_are_none_of_others(
    page: WorkerPage, router: Router, poller: LoadPoller
) -> None:
    own = worker(BUSY, page.url)
    with router.carrying(own), router.carrying(own):
        page.running.set(1)  # the engine has not seen the other one yet
        await poller.poll()
    assert choices(router) == {BUSY, IDLE}


async def test_each_side_of_a_pair_has_the_load_of_its_own_page(
    page: WorkerPage, poller: LoadPoller, router: Router
) -> None:
    """Read the pages of both sides, and not of the second node of an engine."""
    side: dict[str, Any] = {"bootstrap": "127.0.0.1:1", "mode": "prefill"}
    follower = replace(worker(5, page.url), request_url=None, nodes=2, node_rank=1)
    router.fleet.update(
        [
            replace(worker(BUSY, page.url), **side),
            replace(worker(IDLE, None), **side),
            replace(worker(3, page.url), mode="decode"),
            replace(worker(4, None), mode="decode"),
            follower,
        ]
    )
    page.queued.set(2)
    page.running.set(0)
    await poller.poll()
    assert len(page.asked) == 2
    decode = [router.choose("m", "decode") for _ in range(4)]
    prefill = [router.choose("m", "prefill", fitting=one) for one in decode]
    assert {one.id for one in decode if one} == {4}
    assert {one.id for one in prefill if one} == {IDLE}


@pytest.mark.parametrize(
    "fault",
    [
        web.Response(status=503),
        web.Response(body=b"something_else 1\n"),
        web.Response(body=b"no page at all {"),
        web.Response(body=f"{engine_load.RUNNING_REQUESTS} NaN\n".encode()),
        web.Response(body=f"{engine_load.RUNNING_REQUESTS} -5\n".encode()),
        web.Response(body=b"#" * (128 << 10)),
        "slow",
    ],
    ids=["status", "no gauge", "nonsense", "no number", "negative", "large", "slow"],
)
async def test_who_does_not_say_is_judged_by_own_requests_alone(
    page: WorkerPage,
    router: Router,
    poller: LoadPoller,
    caplog: pytest.LogCaptureFixture,
    fault: web.Response | str,
) -> None:
    page.running.set(9)
    await poller.poll()
    assert choices(router) == {IDLE}
    caplog.set_level(logging.DEBUG, "dynamometer")
    if isinstance(fault, web.Response):
        page.fault = fault
    else:
        page.delay = 5.0
    for _ in range(2):
        await poller.poll()
    assert choices(router) == {BUSY, IDLE}
    said = [record for record in caplog.records if f"{BUSY:016x}" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.DEBUG]  # once


async def test_a_report_counts_until_it_is_stale(page: WorkerPage, router: Router) -> None:
    async with aiohttp.ClientSession() as session:
        poller = LoadPoller(router, session, stale=1000.0)
        page.running.set(9)
        await poller.poll()
        page.fault = web.Response(status=500)
        await poller.poll()
        assert choices(router) == {IDLE}


async def test_it_asks_on_and_ends_with_its_context(
    page: WorkerPage, router: Router, poller: LoadPoller
) -> None:
    before = asyncio.all_tasks()
    async with poller.running():
        await until(lambda: len(page.asked) >= 3, within=20)
        assert "load poller" in {task.get_name() for task in asyncio.all_tasks() - before}
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "load poller"]


def test_a_frontend_leaves_a_worker_alone_that_others_keep_busy(tmp_path: Path) -> None:
    """Real processes; the busy one's requests are of a client that asks it itself."""
    flags = ["--engine", "mocker", "--model", "mock", "--enable-metrics", "--processes", "1"]
    flags += ["--tokens-per-second", "1"]
    stack = Stack(tmp_path, Path("mock"), tmp_path / "discovery")

    def answered(worker: Worker) -> int:
        found = re.search(
            r'^dynamo_component_requests_total\{.*dynamo_endpoint="generate".*\} (\S+)$',
            worker.page(),
            re.MULTILINE,
        )
        assert found
        return int(float(found[1]))

    async def run(url: str, busy: Worker, idle: Worker) -> None:
        body = {"model": "mock", "prompt": "hi", "stream": True}
        async with aiohttp.ClientSession() as client, contextlib.AsyncExitStack() as streams:
            for _ in range(3):
                request = client.post(
                    f"{busy.request_url}/v1/completions", json={**body, "max_tokens": 1000}
                )
                await (await streams.enter_async_context(request)).content.readany()
            alone = Router(RouterMode.LEAST_LOADED, Fleet())
            workers = [worker(BUSY, busy.system_url), worker(IDLE, idle.system_url)]
            alone.fleet.update(workers)
            poller = LoadPoller(alone, client)
            async with asyncio.timeout(20):
                while choices(alone) != {IDLE}:
                    await poller.poll()
            # The frontend asks each second: from some time on it knows too.
            while True:
                before = answered(busy)
                for _ in range(4):
                    answer = await asyncio.to_thread(
                        fetch, f"{url}/v1/completions", {**body, "max_tokens": 1}
                    )
                    assert answer.status == 200
                if answered(busy) == before:
                    break

    with (
        stack.run_frontend("--router-mode", "least-loaded") as (_, url),
        stack.run_worker(*flags) as busy,
        stack.run_worker(*flags) as idle,
    ):
        busy.wait_until_ready()
        idle.wait_until_ready()
        eventually(
            lambda: len(fetch(f"{url}/health").json()["instances"]) == 2,  # type: ignore[arg-type]
            within=10,
            what="both are seen",
        )
        asyncio.run(asyncio.wait_for(run(url, busy, idle), 60))
