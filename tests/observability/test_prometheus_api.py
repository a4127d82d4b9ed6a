"""Answers of Prometheus and of a frontend, and bytes of servers that are neither."""

from __future__ import annotations

import json

import aiohttp
import pytest

import page_server
from dynamometer.errors import ObserveError
from dynamometer.observability import prometheus_api
from dynamometer.observability.prometheus_api import PrometheusApi

ODD = {
    "text that is not UTF-8": b'[{"targets":["\xff\xfe"]}]',
    "a name that is not UTF-8": b'{"\xff": 1}',
    "deep nesting": b"[" * 200_000,
    "deep nesting in an unknown field": b'{"a":' * 100_000,
    "an unpaired surrogate": b'[{"targets":["\\ud800"]}]',
    "a compressed file": b"\x1f\x8b\x08\x00",
    "an HTML page": b"<html>",
    "an empty body": b"",
    "a string": b'"x"',
    "null": b"null",
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
async def test_unexpected_bytes_are_an_error_that_names_the_server(body: bytes) -> None:
    with page_server.serving(lambda *_: ("application/json", body)) as address:
        url = f"http://{address}"
        async with aiohttp.ClientSession() as session:
            api = PrometheusApi(session, url)
            for question in (
                prometheus_api.discovered(session, f"{url}/sd"),
                api.targets(),
                api.firing(),
                api.query("up"),
            ):
                with pytest.raises(ObserveError, match=f"{url}.* returned another format: "):
                    await question


async def test_an_odd_value_of_a_query_is_an_error() -> None:
    body = json.dumps({"data": {"result": [{"metric": {}, "value": [1, "many"]}]}}).encode()
    with page_server.serving(lambda *_: ("application/json", body)) as address:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(ObserveError, match=r"another format: .*many"):
                await PrometheusApi(session, f"http://{address}").query("up")


async def test_a_host_without_an_address_is_named_with_the_resolvers_reason() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ObserveError, match=r"no server answers at .*invalid") as caught:
            await prometheus_api.discovered(session, "http://frontend.invalid:8002/sd")
    assert "Unknown error" not in str(caught.value)


async def test_a_body_without_an_end_is_not_read_whole() -> None:
    with page_server.serving(lambda *_: ("application/json", b" " * (17 << 20))) as address:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(ObserveError, match="/sd returned more than 16 MiB"):
                await prometheus_api.discovered(session, f"http://{address}/sd")


async def names(*targets: tuple[str, dict[str, str]]) -> list[str]:
    """Return the names of targets, which have a URL and labels."""
    active = [
        {"labels": {"job": "dynamometer"} | labels, "scrapeUrl": url}
        | {"health": "up", "lastError": "", "lastScrape": ""}
        for url, labels in targets
    ]
    body = json.dumps({"data": {"activeTargets": active}}).encode()
    with page_server.serving(lambda *_: ("application/json", body)) as address:
        async with aiohttp.ClientSession() as session:
            found = await PrometheusApi(session, f"http://{address}").targets()
    return [target.name for target in found]


async def test_targets_at_one_address_have_different_names() -> None:
    labels = {"role": "worker", "instance": "h:9"}
    paths = ("/metrics", "/a/metrics", "/b", "/b?c=d", "")
    assert await names(*((f"http://h:9{path}", labels) for path in paths)) == [
        "worker h:9", "worker h:9/", "worker h:9/a/metrics", "worker h:9/b", "worker h:9/b?c=d",
    ]  # fmt: skip


async def test_a_target_without_labels_has_a_name() -> None:
    assert await names(("http://h:9/metrics", {})) == ["target ?"]
