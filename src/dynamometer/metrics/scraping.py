"""`GET /metrics` over HTTP: formats, encodings, `name[]`, one refresh for all scrapers."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from aiohttp import web

from dynamometer.exposition.filters import Selection
from dynamometer.exposition.negotiation import accepts_gzip, choose_format
from dynamometer.metrics.page import MetricsPage


class _PageRequest(NamedTuple):
    selection: Selection
    openmetrics: bool
    gzip: bool


def add_route(app: web.Application, page: MetricsPage) -> None:
    """Serve `page` at `/metrics` of `app`, for GET and HEAD."""
    app.router.add_get("/metrics", _Scrapes(page).handle)


@dataclass(frozen=True)
class _Scrape:
    """A refresh with its rendering, which all scrapers wait for that arrive before its end."""

    request: _PageRequest
    body: Future[bytes]


class _Scrapes:
    """Answer scrapers that arrive at the same time with one refresh, off the event loop.

    Sources are read and the page is rendered in the page's thread (one handover, and one back).
    No task exists beside the handlers: each handler that waits keeps the deadline.
    """

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._scrape: _Scrape | None = None  # of the event loop

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one scrape."""
        form = choose_format(", ".join(request.headers.getall("Accept", ())))
        wanted = _PageRequest(
            Selection.of(names=request.query.getall("name[]", ())),
            form.openmetrics,
            accepts_gzip(request.headers.get("Accept-Encoding")),
        )
        body = await self._body(wanted)
        headers = {"Content-Type": form.content_type, "Vary": "Accept, Accept-Encoding"}
        if wanted.gzip:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def _body(self, wanted: _PageRequest) -> bytes:
        """Return the rendered page, as of the refresh that is running or of a new one."""
        scrape = self._scrape
        if scrape is None or scrape.body.done():
            scrape = _Scrape(wanted, self._page.submit(partial(self._render, wanted)))
            self._scrape = scrape
        waiting = asyncio.wrap_future(scrape.body)
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=self._page.wait_seconds())
                self._page.give_up_late()
            body = waiting.result()
        finally:
            waiting.cancel()  # the page's thread does not report to a loop that may be closed
        return body if scrape.request == wanted else await asyncio.to_thread(self._render, wanted)

    def _render(self, wanted: _PageRequest) -> bytes:
        render = self._page.compressed if wanted.gzip else self._page.render
        return render(wanted.selection, openmetrics=wanted.openmetrics)
