"""The engine's families on the worker's page."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

import page_server
from dynamometer.engines.interface import Launch, MetricSources
from dynamometer.engines.mocker import Mocker
from dynamometer.exposition.label_bounds import ClientLabels, LabelBounds
from dynamometer.metrics import http_source
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.worker.engine_sources import EngineSources


async def test_a_page_that_takes_long_to_read_is_fetched_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(http_source, "_LARGEST_SHARE", 1e-9)
    endpoint = DistributedRuntime().namespace("n").component("c").endpoint("e")
    page = ("text/plain", b"# TYPE sglang:a gauge\nsglang:a 1\n")
    with page_server.serving(lambda _path, _headers: page) as address:
        url = f"http://{address}"
        launch = Launch(
            command=(), environment={}, url=url, model="m", model_path="m",
            sources=MetricSources(page_url=f"{url}/metrics"),
        )  # fmt: skip
        async with aiohttp.ClientSession() as session:
            sources = EngineSources(
                endpoint, Mocker(), launch, labels={}, session=session, max_series=100,
                label_bounds=LabelBounds(ClientLabels()),
            )  # fmt: skip
            ready = asyncio.Event()
            ready.set()
            monkeypatch.setattr("dynamometer.worker.engine_sources.asyncio.sleep", pause)
            with pytest.raises(asyncio.CancelledError):
                await sources.fetch(ready)
    assert pauses[0] > http_source.INTERVAL_SECONDS
