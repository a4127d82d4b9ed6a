"""Checks of a port and of a health route, beside servers with every fault."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import aiohttp
import pytest

from dynamometer.exporter.health import Health, HealthCheck
from processes import refusing_port


@asynccontextmanager
async def server(answer: bytes | None) -> AsyncIterator[int]:
    """Answer each connection with these bytes, or not at all; yield the port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            if await reader.read(1) and answer is None:
                await reader.read()  # until the client closes the connection
            writer.write(answer or b"")

    running = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield int(running.sockets[0].getsockname()[1])
    finally:
        running.close()


@asynccontextmanager
async def check_of(url: str, path: str = "/health") -> AsyncIterator[HealthCheck]:
    async with aiohttp.ClientSession() as session:
        yield HealthCheck(session, url, path, deadline=0.5)


def answer(status: int, body: str = "") -> bytes:
    return f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


# The bytes that a server answers, and the health of the engine.
ANSWERS = {
    "200": (answer(200), Health(True)),
    "404, without the route": (answer(404), Health(True)),
    "401, without a key": (answer(401), Health(True)),
    "500": (answer(500), Health(False, "{url}/health answers 500")),
    "503": (answer(503), Health(False, "{url}/health answers 503")),
    "nothing in time": (None, Health(False, "{url}/health: no answer within 0.5 s")),
    "a closed connection": (
        b"",
        Health(False, "{url}/health: Server disconnected", disconnected=True),
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_a_health_route_that_answers(case: str) -> None:
    content, expected = ANSWERS[case]
    async with server(content) as port, check_of(f"http://127.0.0.1:{port}") as check:
        found = await check.check_health()
        assert found.healthy == expected.healthy
        assert found.reason == expected.reason.format(url=f"http://127.0.0.1:{port}")
        assert found.disconnected == expected.disconnected
        assert await check.check_port() == Health(True)


async def test_without_a_route_only_the_port_is_checked() -> None:
    async with server(None) as port, check_of(f"http://127.0.0.1:{port}", "") as check:
        assert await check.check_health() == Health(True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_closed_port_has_the_same_plain_reason_by_port_and_route(host: str) -> None:
    url = f"http://{host}:{refusing_port()}"
    async with check_of(url) as check:
        expected = Health(False, f"{url}: no process listens there", True, True)
        assert await check.check_port() == await check.check_health() == expected


# URLs, and a part of the reason.
UNREACHABLE = {
    "http://127.0.0.1:99999": "Port out of range",
    f"http://{'a' * 70}.x:1": "too long",
    "http://name.invalid:1": "",  # depends on the resolver
}


@pytest.mark.parametrize("url", UNREACHABLE)
async def test_an_address_that_cannot_be_used_is_a_reason(url: str) -> None:
    async with check_of(url) as check:
        found = await check.check_port()
    assert not found.healthy
    assert not found.refused
    assert found.reason.startswith(f"{url}: ")
    assert UNREACHABLE[url] in found.reason
    assert "ssl:" not in found.reason


async def test_a_server_without_tls_is_a_plain_reason() -> None:
    async with server(answer(200)) as port, check_of(f"https://127.0.0.1:{port}") as check:
        found = await check.check_health()
    assert not found.healthy
    assert "ssl:" not in found.reason
    assert "Operation not permitted" not in found.reason  # errno 1 of ssl is not the system's


async def test_a_shortage_of_descriptors_here_is_not_a_fault_of_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def connect(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_connection", connect)
    async with check_of(f"http://127.0.0.1:{refusing_port()}") as check:
        with pytest.raises(OSError, match="Too many open files"):
            await check.check_port()


async def test_a_lookup_that_hangs_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object, **__: object) -> list[object]:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    async with check_of("http://name.invalid:1") as check:
        found = await check.check_port()
    released.set()
    assert "no answer within 1 s" in found.reason


# The body of /v1/models, and the model.
MODELS = {
    '{"data": [{"id": "tiny"}, {"id": "other"}]}': "tiny",
    '{"data": []}': "",
    '{"data": {}}': "",
    "[]": "",
    "<html>": "",
    '{"data": [{"id": "' + "a" * 2000 + '"}]}': "",
}


@pytest.mark.parametrize("body", MODELS)
async def test_the_model_is_the_first_that_is_listed(body: str) -> None:
    async with server(answer(200, body)) as port, check_of(f"http://127.0.0.1:{port}") as check:
        assert await check.fetch_model() == MODELS[body]


async def test_without_an_answer_the_model_is_unknown() -> None:
    async with check_of(f"http://127.0.0.1:{refusing_port()}") as check:
        assert await check.fetch_model() == ""
