"""`GET /metrics` over HTTP: formats, encodings, `name[]`, and one refresh for all who ask."""

from __future__ import annotations

import asyncio

from aiohttp import web

from dynamometer.exposition.filters import Selection
from dynamometer.exposition.negotiate import accepts_gzip, choose_format
from dynamometer.metrics.page import MetricsPage


def add_route(app: web.Application, page: MetricsPage) -> None:
    """Serve `page` at `/metrics` of `app`, for GET and HEAD."""
    app.router.add_get("/metrics", _Scrapes(page).handle)


class _Scrapes:
    """Scrapers that come at once share one rendering; none of them holds up the event loop.

    Reading and rendering run in a thread: with a short switch interval (`runtime.loops`) the
    loop gets its turn within a millisecond, and a first reading of many new series needs no
    slicing.
    """

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._running: asyncio.Task[None] | None = None

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one scrape."""
        form = choose_format(request.headers.get("Accept"))
        gzip = accepts_gzip(request.headers.get("Accept-Encoding"))
        selection = Selection.of(names=request.query.getall("name[]", ()))
        await self._refresh()
        render = self._page.compressed if gzip else self._page.render
        body = await asyncio.to_thread(render, selection, openmetrics=form.openmetrics)
        headers = {"Content-Type": form.content_type, "Vary": "Accept, Accept-Encoding"}
        if gzip:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def _refresh(self) -> None:
        """Look at all sources, together with whoever asked before the look began to end."""
        if self._running is None:
            self._running = asyncio.create_task(self._look(), name="scrape")
        await asyncio.shield(self._running)

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self._page.refresh)
        finally:
            self._running = None
