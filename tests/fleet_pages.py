"""Workers whose pages a test writes, in one server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiohttp import web

from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics.page import MetricsPage
from dynamometer.metrics.scraping import Scrapes
from dynamometer.names import build, engine_load, labels
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.record import Record, Role, State


class FleetServer:
    """The pages of several workers, by their ids.

    Attributes:
        pages: the pages; a `MetricsPage` has all of a worker's formats and `name[]`.
        requested: the id, path and query of each request.
        arrived: set at each request.
        open: cleared to let requests wait.
        delayed: the seconds before the answers, by id.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.pages: dict[int, bytes | web.Response | MetricsPage] = {}
        self.requested: list[tuple[int, str]] = []
        self.connections: set[object] = set()
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.late: set[int] = set()
        self.delayed: dict[int, float] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        id_ = int(request.match_info["id"])
        self.requested.append((id_, request.query_string))
        self.connections.add(request.transport)
        self.arrived.set()
        await self.open.wait()
        await asyncio.sleep(self.delayed.get(id_, 0))
        if id_ in self.late:
            await asyncio.sleep(60)  # the request is cancelled
        page = self.pages[id_]
        if isinstance(page, MetricsPage):
            return await Scrapes(page).handle(request)
        if isinstance(page, web.Response):
            return web.Response(body=page.body, status=page.status)
        return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4"})

    def record(self, id_: int, **fields: object) -> Record:
        """Return the record of a worker with a page on this server."""
        values = {"role": Role.WORKER, "state": State.READY, "models": ("m",), **fields}
        values.setdefault("system_url", f"{self._url}/{id_}")
        return Record(id=id_, namespace="n", component="c", **values)  # type: ignore[arg-type]

    @property
    def records(self) -> Iterable[Record]:
        return [self.record(id_) for id_ in self.pages]


@asynccontextmanager
async def serving_pages() -> AsyncIterator[FleetServer]:
    """Serve the pages of several workers on one port while the context is open."""
    app = web.Application()
    listener = addresses.listen("127.0.0.1", 0, setting="")
    server = FleetServer(addresses.url(listener))
    app.router.add_get("/{id}/metrics", server.handle)
    async with serving(app, listener):
        yield server


def worker_page(id_: int, *, running: float = 0, extra: str = "") -> bytes:
    """Return the page of a worker: families of its engine, and one of its own."""
    own = f'{labels.MODEL}="m",{labels.WORKER_ID}="{hexadecimal(id_)}"'
    return (
        f"# HELP sglang:num_running_reqs Requests\n# TYPE sglang:num_running_reqs gauge\n"
        f"sglang:num_running_reqs{{{own}}} {running}\n"
        f"# TYPE sglang:latency_seconds histogram\n"
        f'sglang:latency_seconds_bucket{{le="1",{own}}} 1\n'
        f'sglang:latency_seconds_bucket{{le="+Inf",{own}}} 2\n'
        f"sglang:latency_seconds_sum{{{own}}} 3.5\n"
        f"sglang:latency_seconds_count{{{own}}} 2\n"
        f"# TYPE {engine_load.RUNNING_REQUESTS} gauge\n"
        f"{engine_load.RUNNING_REQUESTS}{{{own}}} {running}\n"
        f"# TYPE {build.WORKER_INFO} gauge\n"
        f'{build.WORKER_INFO}{{{labels.MODE}="prefill",{own}}} 1\n'
        f"# TYPE dynamo_component_requests_total counter\n"
        f"dynamo_component_requests_total{{{own}}} 7\n"
    ).encode() + extra.encode()
