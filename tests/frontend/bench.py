"""A forwarder with simulated workers that a test provides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from dynamometer.engines import kinds
from dynamometer.frontend.forwarding import Forwarder
from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.http import addresses, server
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.http.client import Client
from dynamometer.http.handlers import Handlers, scrapes_by
from dynamometer.http.messages import Response
from dynamometer.http.origins import Origins
from dynamometer.http.server import Limits
from dynamometer.metrics.page import MetricsPage
from dynamometer.metrics.scraping import Scrapes
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.identity import new_id
from dynamometer.runtime.record import Record, Role, State
from processes import refusing_port
from raw_http import exchange

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CHAT = "/v1/chat/completions"


@dataclass
class Bench:
    """A frontend over workers that a test writes."""

    session: aiohttp.ClientSession
    registry: CollectorRegistry
    fleet: Fleet
    router: Router
    metrics: FrontendMetrics
    forwarder: Forwarder
    url: str
    _stack: AsyncExitStack
    _records: list[Record] = field(default_factory=list)

    async def worker(self, handler: Handler, model: str = "m", **fields: Any) -> Record:
        """Start a worker that answers by `handler`; `fields` are its record's."""
        app = web.Application()
        app.router.add_post("/{path:.*}", handler)
        listener = addresses.listen("127.0.0.1", 0, setting="")
        await self._stack.enter_async_context(serving(app, listener))
        return self.register(addresses.url(listener), model, **fields)

    def register(self, url: str, model: str = "m", **fields: Any) -> Record:
        record = Record(
            role=Role.WORKER,
            id=new_id(),
            namespace="dynamo",
            component="backend",
            models=(model,),
            engine=kinds.DEFAULT.name,
            request_url=url,
            state=State.READY,
        )
        record = replace(record, **fields)
        self._records.append(record)
        self._show()
        return record

    def replace(self, record: Record) -> None:
        """Replace the record of the same instance."""
        self._records = [record if one.id == record.id else one for one in self._records]
        self._show()

    def remove(self, record: Record) -> None:
        """Remove an instance."""
        self._records = [one for one in self._records if one.id != record.id]
        self._show()

    def restore(self, record: Record) -> None:
        """Show an instance that was removed."""
        self._records.append(record)
        self._show()

    def forget(self) -> None:
        self._records.clear()
        self._show()

    def _show(self) -> None:
        self.fleet.update(self._records)

    def count(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name in (name, f"dynamo_frontend_{name}")
            and labels.items() <= sample.labels.items()
        )

    async def sends(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own; return what is received until its end."""
        return await exchange(self.url, data)

    async def ask(self, path: str = CHAT, **body: object) -> tuple[int, bytes]:
        async with self.session.post(self.url + path, json={"model": "m"} | body) as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def make_bench(
    max_body_size: int = 2**20,
    origins: Sequence[str] = (),
    limits: Limits | None = None,
    *,
    forward_custom_labels: bool = False,
) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        workers = Client(idle_seconds=3)
        stack.callback(workers.close)
        registry = CollectorRegistry()
        fleet = Fleet(engines=kinds.ENGINES)
        router = Router(RouterMode.ROUND_ROBIN, fleet)
        metrics = FrontendMetrics(registry)
        metrics.follow(fleet)
        forwarder = Forwarder(
            routes=kinds.ROUTES,
            router=router,
            metrics=metrics,
            client=workers,
            refresh=nothing_new,
            max_body_size=max_body_size,
            forward_custom_labels=forward_custom_labels,
        )
        handlers = Handlers(Origins(origins))
        for path in kinds.ROUTES:
            handlers.post(path, forwarder.handle)
        handlers.get("/metrics", scrapes_by(Scrapes(MetricsPage(registry)).render))
        listener = addresses.listen("127.0.0.1", 0, setting="")
        limits = limits or Limits(body_bytes=max_body_size)
        await stack.enter_async_context(server.serving(handlers, listener, limits=limits))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        url = addresses.url(listener)
        yield Bench(client, registry, fleet, router, metrics, forwarder, url, stack)


async def nothing_new() -> None:
    pass


def of_aiohttp(answer: Response) -> web.Response:
    """An answer of the worker's own server, for a worker that aiohttp serves."""
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


async def fine(request: web.Request) -> web.StreamResponse:
    return web.Response(body=await request.read(), headers={"X-Engine": "yes"})


def nobody() -> str:
    return f"http://127.0.0.1:{refusing_port()}"


def breaks_off(content: bytes) -> Handler:
    """Return a worker's handler that sends a part of an answer and then closes the connection."""

    async def handle(request: web.Request) -> web.StreamResponse:
        stream = b'"stream": true' in await request.read()
        kind = "text/event-stream" if stream else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind})
        if not stream:
            response.content_length = len(content) + 1000
        await response.prepare(request)
        await response.write(content)
        # The frontend's client drops what arrives together with the end of the connection.
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    return handle
