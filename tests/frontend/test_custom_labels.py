"""Clients cannot set the labels of an engine's metrics, unless the frontend allows their header."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from bench import CHAT, Bench, Handler, make_bench

from dynamometer.engines import kinds

TENANT = '{"tenant": "acme"}'


class Engine:
    """Records the requests that arrive behind the frontend."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(await request.read())
        return web.Response(body=b"{}")


async def ask(
    bench: Bench, headers: dict[str, str], *, path: str = CHAT, body: bytes = b'{"model": "m"}'
) -> None:
    async with bench.session.post(bench.url + path, data=body, headers=headers) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("name", ["x-custom-labels", "X-Custom-Labels", "X-CUSTOM-LABELS"])
async def test_a_frontend_removes_the_header_that_sets_labels(name: str) -> None:
    engine = Engine()
    async with make_bench() as bench:
        await bench.worker(engine.handle)
        await ask(bench, {name: TENANT, "X-Other": "kept"})
    assert "x-custom-labels" not in engine.headers[0]
    assert engine.headers[0]["x-other"] == "kept"


async def test_every_copy_of_the_header_is_removed() -> None:
    engine = Engine()
    async with make_bench() as bench:
        await bench.worker(engine.handle)
        body = b'{"model": "m"}'
        copies = b"X-Custom-Labels: {}\r\nx-custom-labels: {}\r\n"
        length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\n" + copies + length
        assert b" 200 " in await bench.sends(head + body)
    assert "x-custom-labels" not in engine.headers[0]


async def test_a_frontend_with_the_flag_forwards_the_header() -> None:
    engine = Engine()
    async with make_bench(forward_custom_labels=True) as bench:
        await bench.worker(engine.handle, labels_header="X-Tenant")
        await ask(bench, {"X-Custom-Labels": TENANT, "X-Tenant": TENANT})
    assert engine.headers[0]["x-custom-labels"] == engine.headers[0]["x-tenant"] == TENANT


async def test_a_header_that_the_worker_names_is_removed_for_this_worker() -> None:
    named, default = Engine(), Engine()
    async with make_bench() as bench:
        await bench.worker(named.handle, model="a", labels_header="X-Tenant")
        await bench.worker(default.handle, model="b")
        for model in (b"a", b"b"):
            body = b'{"model": "%b"}' % model
            await ask(bench, {"X-Custom-Labels": TENANT, "X-Tenant": TENANT}, body=body)
    assert not {"x-custom-labels", "x-tenant"} & named.headers[0].keys()
    assert "x-custom-labels" not in default.headers[0]
    assert default.headers[0]["x-tenant"] == TENANT


async def test_a_retry_removes_the_header_too() -> None:
    engine = Engine()
    async with make_bench() as bench:
        await bench.worker(unready(engine))
        await bench.worker(unready(engine))
        async with bench.session.post(
            bench.url + CHAT, json={"model": "m"}, headers={"X-Custom-Labels": TENANT}
        ) as answer:
            assert answer.status == 503
    assert len(engine.headers) == 2
    assert not any("x-custom-labels" in headers for headers in engine.headers)


def unready(engine: Engine) -> Handler:
    """Return the handler of a worker that records requests and accepts none."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await engine.handle(request)
        return web.Response(status=503, headers={"X-Dynamometer-Retry": "1"})

    return handle


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("name", ['"custom_labels"', '"custom\\u005flabels"'])
async def test_labels_in_a_body_never_arrive(forward: bool, name: str) -> None:
    """A gateway that sets the header does not read bodies, so the flag allows the header only."""
    engine = Engine()
    labels = f'{name}: {{"tenant": "forged"}}'
    body = f'{{"text": "custom_labels", {labels}, "x": 1.10, {labels}}}'
    async with make_bench(forward_custom_labels=forward) as bench:
        await bench.worker(engine.handle)
        await ask(bench, {}, path="/generate", body=body.encode())
    received = json.loads(engine.bodies[0])
    assert received == {"text": "custom_labels", "custom_labels": None, "x": 1.1}
    assert b"1.10" in engine.bodies[0]


async def test_a_body_without_labels_is_unchanged() -> None:
    engine = Engine()
    body = b'{"text": "custom_labels", "custom_labels" : null, "x": {"custom_labels": {"a": "b"}}}'
    async with make_bench() as bench:
        await bench.worker(engine.handle)
        await ask(bench, {}, path="/generate", body=body)
    assert engine.bodies == [body]


def test_every_engine_names_its_header() -> None:
    assert {engine.labels_header for engine in kinds.ENGINES.values()} == {"x-custom-labels"}
