"""`GET /metrics` over HTTP: formats, encodings, `name[]`, and one refresh for all who ask."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Shared:
    """A rendering that several scrapers wait for; an error where it failed."""

    want: _Want
    body: asyncio.Future[bytes | Exception]


class _Scrapes:
    """Scrapers that come at once share one rendering; none of them holds up the event loop.

    Reading and rendering run in a thread: with a short switch interval (`process.event_loop`) the
    loop gets its turn within a millisecond, and a first reading of many new series needs no
    slicing. There is no task beside the handlers: each that waits sees to the deadline.
    """

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._shared: _Shared | None = None

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
        """Render the page in the form wanted, refreshed together with all who ask meanwhile."""
        shared = self._shared or self._begin(want)
        while not shared.body.done():
            await asyncio.wait([shared.body], timeout=self._page.wait_seconds())
            self._page.give_up_late()
        body = shared.body.result()
        if isinstance(body, Exception):
            raise body
        return body if shared.want == want else await asyncio.to_thread(self._render, want)

    def _begin(self, want: _Want) -> _Shared:
        """Refresh and render in the page's thread: one handover, and one back."""
        loop = asyncio.get_running_loop()
        shared = _Shared(want, loop.create_future())

        def finish() -> None:
            body: bytes | Exception
            try:
                body = self._render(want)
            except Exception as error:  # raised in each handler that waits
                body = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(set_body, body)

        def set_body(body: bytes | Exception) -> None:
            self._shared = None
            shared.body.set_result(body)

        self._page.begin(finish)
        self._shared = shared
        return shared

    def _render(self, want: _Want) -> bytes:
        render = self._page.compressed if want.gzip else self._page.render
        return render(want.selection, openmetrics=want.openmetrics)
