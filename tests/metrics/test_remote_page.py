"""The page of another process: what is read, and the reason for each fault."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from dynamometer.http import addresses
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.metrics.remote_page import RemotePageError, fetch_page
from processes import refusing_port

ANSWERS = {
    "/page": web.Response(body=b"a 1\n", headers={"Content-Type": "text/plain"}),
    "/gzip": web.Response(body=gzip.compress(b"a 1\n"), headers={"Content-Encoding": "gzip"}),
    "/broken": web.Response(body=b"a 1\n", headers={"Content-Encoding": "gzip"}),
    "/error": web.Response(status=503),
    "/moved": web.Response(status=302, headers={"Location": "/page"}),
    "/large": web.Response(body=b"x" * 2000),
}


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        made = ANSWERS[request.path]
        return web.Response(body=made.body, status=made.status, headers=made.headers)

    app = web.Application()
    app.router.add_get("/{path}", answer)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    async with serving(app, listener):
        yield addresses.url(listener)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def test_a_page_is_decoded(url: str, session: aiohttp.ClientSession) -> None:
    page = await fetch_page(session, f"{url}/page", limit=1000, deadline=10)
    assert (page.body, page.content_type) == (b"a 1\n", "text/plain")
    assert (await fetch_page(session, f"{url}/gzip", limit=1000, deadline=10)).body == b"a 1\n"


async def test_a_redirect_is_followed_only_if_allowed(
    url: str, session: aiohttp.ClientSession
) -> None:
    page = await fetch_page(session, f"{url}/moved", limit=1000, deadline=10, redirects=True)
    assert page.body == b"a 1\n"
    with pytest.raises(RemotePageError, match="answers 302 Found"):
        await fetch_page(session, f"{url}/moved", limit=1000, deadline=10)


@pytest.mark.parametrize(
    ("path", "reason", "message"),
    [
        ("/error", "status", "answers 503 Service Unavailable"),
        ("/large", "too_large", "more than 0 KiB"),
        ("/broken", "invalid", "the body is not gzip"),
    ],
)
async def test_a_fault_has_a_reason(
    url: str, session: aiohttp.ClientSession, path: str, reason: str, message: str
) -> None:
    with pytest.raises(RemotePageError, match=message) as caught:
        await fetch_page(session, url + path, limit=1000, deadline=10)
    assert caught.value.reason == reason


async def test_a_refused_connection_has_a_reason(session: aiohttp.ClientSession) -> None:
    with pytest.raises(RemotePageError, match="Connection refused") as caught:
        await fetch_page(session, f"http://127.0.0.1:{refusing_port()}/", limit=1, deadline=10)
    assert caught.value.reason == "unreachable"
