"""`GET /metrics` over HTTP: formats, encodings, `name[]`, and one refresh for several scrapers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from aiohttp import web

from dynamometer.exposition.filters import Selection
from dynamometer.exposition.negotiation import accepts_gzip, choose_format
from dynamometer.metrics.refresh import PageRequest

Render: TypeAlias = Callable[[PageRequest], Awaitable[bytes]]
"""A function that renders the current page, such as `Scrapes.render`."""


class ScrapedPage(Protocol):
    """The part of a `MetricsPage` that a scrape needs; the page may be in another process."""

    def submit(self, request: PageRequest, /) -> Future[bytes]:
        """See `MetricsPage.submit`."""

    def wait_seconds(self) -> float:
        """See `MetricsPage.wait_seconds`."""

    def give_up_late(self) -> None:
        """See `MetricsPage.give_up_late`."""

    def answer(self, request: PageRequest) -> bytes:
        """See `MetricsPage.answer`."""


def add_route(app: web.Application, page: ScrapedPage) -> None:
    """Serve `page` at `/metrics` of `app`, for GET and HEAD."""
    app.router.add_get("/metrics", Scrapes(page).handle)


async def answer(
    render: Render, *, accept: str, accept_encoding: str, names: Sequence[str]
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of the response to one scrape.

    Args:
        render: renders the page.
        accept: the values of the header `Accept`.
        accept_encoding: the value of the header `Accept-Encoding`.
        names: the values of `name[]` in the query.
    """
    form = choose_format(accept)
    wanted = PageRequest(Selection.of(names=names), form.openmetrics, accepts_gzip(accept_encoding))
    body = await render(wanted)
    headers = {"Content-Type": form.content_type, "Vary": "Accept, Accept-Encoding"}
    if wanted.gzip:
        headers["Content-Encoding"] = "gzip"
    return body, headers


@dataclass(frozen=True)
class _Scrape:
    """A refresh and the rendered page, shared by all scrapers that arrive before it is done."""

    request: PageRequest
    body: Future[bytes]


class Scrapes:
    """Answer scrapers that arrive at the same time with one refresh, off the event loop.

    The page's thread reads the sources and also renders the page, so a scrape switches threads only
    twice. Each handler that waits enforces the deadline, so that no further task is needed.
    """

    def __init__(self, page: ScrapedPage) -> None:
        self._page = page
        self._scrape: _Scrape | None = None  # the event loop owns this attribute

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one scrape of aiohttp's server."""
        body, headers = await answer(
            self.render,
            accept=", ".join(request.headers.getall("Accept", ())),
            accept_encoding=request.headers.get("Accept-Encoding", ""),
            names=request.query.getall("name[]", ()),
        )
        return web.Response(body=body, headers=headers)

    async def render(self, wanted: PageRequest) -> bytes:
        """Return the page after the running refresh, or after a new one."""
        scrape = self._scrape
        if scrape is None or scrape.body.done():
            scrape = self._scrape = _Scrape(wanted, self._page.submit(wanted))
        waiting = asyncio.wrap_future(scrape.body)
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=self._page.wait_seconds())
                self._page.give_up_late()
            body = waiting.result()
        finally:
            waiting.cancel()  # so that the page's thread does not call a closed event loop
        if scrape.request == wanted:
            return body
        return await asyncio.to_thread(self._page.answer, wanted)
