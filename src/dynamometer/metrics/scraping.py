"""`GET /metrics` over HTTP: formats, encodings, `name[]`, and one refresh for all who ask."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple

from aiohttp import web

from dynamometer.exposition.filters import Selection
from dynamometer.exposition.negotiate import accepts_gzip, choose_format
from dynamometer.metrics.page import MetricsPage


class _Want(NamedTuple):
    selection: Selection
    openmetrics: bool
    gzip: bool


def add_route(app: web.Application, page: MetricsPage) -> None:
    """Serve `page` at `/metrics` of `app`, for GET and HEAD."""
    app.router.add_get("/metrics", _Scrapes(page).handle)


def _set(future: asyncio.Future[bytes], body: bytes | Exception) -> None:
    if future.done():
        return
    if isinstance(body, Exception):
        future.set_exception(body)
    else:
        future.set_result(body)


class _Scrapes:
    """Scrapers that come at once share one rendering; none of them holds up the event loop.

    Reading and rendering run in a thread: with a short switch interval (`process.event_loop`) the
    loop gets its turn within a millisecond, and a first reading of many new series needs no
    slicing.
    """

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._running: asyncio.Task[tuple[_Want, bytes]] | None = None

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one scrape."""
        form = choose_format(", ".join(request.headers.getall("Accept", ())))
        want = _Want(
            Selection.of(names=request.query.getall("name[]", ())),
            form.openmetrics,
            accepts_gzip(request.headers.get("Accept-Encoding")),
        )
        body = await self._body(want)
        headers = {"Content-Type": form.content_type, "Vary": "Accept, Accept-Encoding"}
        if want.gzip:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def _body(self, want: _Want) -> bytes:
        """The page in the form wanted, refreshed together with all who ask meanwhile."""
        if self._running is None:
            self._running = asyncio.create_task(self._look(want), name="scrape")
        made, body = await asyncio.shield(self._running)
        return body if made == want else await asyncio.to_thread(self._render, want)

    async def _look(self, want: _Want) -> tuple[_Want, bytes]:
        """Refresh and render in the page's thread: one hand-over, and one back."""
        loop = asyncio.get_running_loop()
        made: asyncio.Future[bytes] = loop.create_future()

        def finish() -> None:
            body: bytes | Exception
            try:
                body = self._render(want)
            except Exception as error:  # handed to whoever asked
                body = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_set, made, body)

        try:
            one = self._page.begin(finish)
            for seconds in self._page.patience():
                await asyncio.wait([made], timeout=seconds)
                if made.done():
                    return want, made.result()
                self._page.give_up(one)
            raise AssertionError("patience has no end")
        finally:
            self._running = None

    def _render(self, want: _Want) -> bytes:
        render = self._page.compressed if want.gzip else self._page.render
        return render(want.selection, openmetrics=want.openmetrics)
