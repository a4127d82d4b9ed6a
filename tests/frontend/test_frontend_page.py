"""A frontend's page: NVIDIA Dynamo's families, and no label value from a client."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from bench import CHAT
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.engines import kinds
from dynamometer.errors import SettingsError
from dynamometer.frontend.app import Frontend, FrontendOptions, serve
from dynamometer.frontend.canary import Canary
from dynamometer.frontend.forwarding import Forwarder
from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.http import addresses, server
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.http.client import Client
from dynamometer.http.server import Limits
from dynamometer.metrics.buckets import FrontendBuckets
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.runtime.discovery import file
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.follower import Follower
from dynamometer.runtime.discovery.interface import Discovery
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.record import Record, Role, State
from dynamometer.settings import DEFAULT_BUCKET_RANGES

SAMPLE = Path(__file__).parent.parent / "samples" / "dynamo-metrics.tsv"
ANSWER = b"".join(
    b"data: " + json.dumps(event).encode() + b"\n\n"
    for event in (
        {"choices": [{"delta": {"content": "a"}}]},
        {"choices": [{"delta": {"content": "b"}}]},
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 1},
            },
        },
    )
)
# Families of NVIDIA Dynamo that do not apply here: see docs/metrics.md.
PREFIXES = ("dynamo_frontend_", "dynamo_request_plane_")


@dataclass
class Site:
    """A frontend, and one worker that streams two tokens."""

    session: aiohttp.ClientSession
    url: str

    async def families(self) -> dict[str, Metric]:
        async with self.session.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        return {family.name: family for family in parse(text)}

    async def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in (await self.families()).values()
            for sample in family.samples
        }

    async def chat(self, model: str = "m") -> int:
        body = {"model": model, "stream": True}
        async with self.session.post(self.url + CHAT, json=body) as answer:
            await answer.read()
            return answer.status


async def answering(request: web.Request) -> web.StreamResponse:
    await request.read()
    return web.Response(body=ANSWER, content_type="text/event-stream")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        worker = web.Application()
        worker.router.add_post("/{path:.*}", answering)
        listener = addresses.listen("127.0.0.1", 0, setting="")
        await stack.enter_async_context(serving(worker, listener))
        discovery = FileDiscovery(tmp_path)
        record = Record(
            role=Role.WORKER,
            id=2**63 + 7,
            namespace="dynamo",
            component="backend",
            endpoint="generate",
            models=("m",),
            engine_info={
                "context_length": 2048,
                "total_kv_blocks": 512,
                "kv_block_size": 16,
                "max_sequences": 8,
                "max_batched_tokens": 4096,
            },
            request_url=addresses.url(listener),
            state=State.READY,
        )
        await stack.enter_async_context(discovery.register(record))
        runtime = DistributedRuntime()
        instruments = runtime.registry
        workers = Client(idle_seconds=3)
        stack.callback(workers.close)
        fleet = Fleet()
        follower = Follower(discovery, fleet)
        metrics = FrontendMetrics(instruments)
        frontend = Frontend(follower=follower, metrics=metrics, page=runtime.page)
        await stack.enter_async_context(Canary(instruments).watching())
        forwarder = Forwarder(
            routes=kinds.ROUTES,
            router=Router(RouterMode.ROUND_ROBIN, fleet),
            metrics=metrics,
            client=workers,
            refresh=follower.refresh,
            max_body_size=2**20,
        )
        await follower.refresh()
        own = addresses.listen("127.0.0.1", 0, setting="")
        limits = Limits(body_bytes=2**20)
        handlers = frontend.handlers(forwarder)
        await stack.enter_async_context(server.serving(handlers, own, limits=limits))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        yield Site(client, addresses.url(own))


def bounds(family: Metric) -> list[float]:
    found = {float(s.labels["le"]) for s in family.samples if s.name == f"{family.name}_bucket"}
    return sorted(found)


def label_names(family: Metric) -> set[str]:
    return {name for sample in family.samples for name in sample.labels if name != "le"}


def theirs() -> Iterator[dict[str, str]]:
    with SAMPLE.open(encoding="utf-8") as file:
        yield from csv.DictReader(file, delimiter="\t")


async def test_a_family_of_the_peers_is_as_the_peer_has_it(site: Site) -> None:
    assert await site.chat() == 200
    ours = await site.families()
    compared = set()
    for row in theirs():
        name = row["name"].removesuffix("_total") if row["type"] == "counter" else row["name"]
        family = ours.get(name)
        if family is None or not row["name"].startswith(PREFIXES):
            continue
        compared.add(name)
        assert family.type == row["type"], name
        assert family.samples, name
        assert label_names(family) == {label for label in row["labels"].split(",") if label}, name
        assert bounds(family) == [float(bound) for bound in row["buckets"].split()], name
    mine = {name for name in ours if name.startswith(PREFIXES)}
    # Families of earlier releases of NVIDIA Dynamo, and one that it creates at the first count.
    made_late = "dynamo_frontend_model_rejection"
    assert mine - compared == {"dynamo_frontend_model_workers", made_late}


async def test_every_family_of_nvidia_dynamo_that_applies_is_on_the_page(site: Site) -> None:
    """Families of tokenizers, images, sound and video are excluded, because the frontend does not
    read these, and the time of a send, which is not separate over HTTP.
    """
    assert await site.chat() == 200
    ours = await site.families()
    wanted = {row["name"] for row in theirs() if row["name"].startswith(PREFIXES)}
    found = {name for name in wanted if {name, name.removesuffix("_total")} & ours.keys()}
    meaningless = ("token_cache", "tokeniz", "detokeniz", "template", "image", "audio", "video")
    others = {name for name in wanted - found if not any(word in name for word in meaningless)}
    assert others == {"dynamo_request_plane_send_seconds"}


async def test_what_clients_invent_makes_no_series(site: Site) -> None:
    assert await site.chat() == 200
    assert await site.chat("never-seen") == 404
    before = await site.series()
    count = 10_000
    address = site.url.removeprefix("http://").split(":")

    async def send(requests: list[bytes], status: bytes) -> None:
        """On one connection, in batches; each is answered with `status`."""
        reader, writer = await asyncio.open_connection(*address)
        for begin in range(0, len(requests), 100):
            batch = requests[begin : begin + 100]
            writer.write(b"".join(batch))
            text, answers = b"", 0
            while answers < len(batch):
                received = await reader.read(2**20)
                assert received, text[-2000:]
                text += received
                answers = text.count(b"HTTP/1.")
            assert text.count(b" %s " % status) == len(batch)
        writer.close()

    def chat(number: int) -> bytes:
        body = b'{"model":"m-%d","user":"user-%d","stream":%s}' % (
            number, number, b"true" if number % 2 else b"false",
        )  # fmt: skip
        return (
            b"POST /v1/chat/completions?user=%d HTTP/1.1\r\nHost: h%d\r\nUser-Agent: a%d\r\n"
            b"X-User: %d\r\nAuthorization: Bearer %d\r\nContent-Length: %d\r\n\r\n%s"
            % (number, number, number, number, number, len(body), body)
        )

    def path(number: int) -> bytes:
        method = (b"GET", b"DELETE", b"OPTIONS", b"PROPFIND", b"PUT")[number % 5]
        room = b"models" if method == b"GET" else b"invented"
        return b"%s /v1/%s/%d HTTP/1.1\r\nHost: x\r\n\r\n" % (method, room, number)

    await send([chat(number) for number in range(count)], b"404")
    await send([path(number) for number in range(count)], b"404")
    for number in range(count // 10):  # no handler sees it, and each closes its connection
        await send([b"M%dX /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n" % number], b"400")
    assert await site.series() == before


@pytest.mark.parametrize("prefix", ["mine", "_"])
def test_families_of_the_frontend_have_the_prefix_that_was_asked_for(prefix: str) -> None:
    instruments = InstrumentRegistry()
    FrontendMetrics(instruments, prefix=prefix)
    Canary(instruments, prefix=prefix)
    found = {metric.name for metric in instruments.collect()}
    plane = {name for name in found if name.startswith("dynamo_request_plane_")}
    assert len(plane) == 3
    own = {"dynamometer_frontend_workers", "dynamometer_frontend_retries"}
    assert own <= found
    assert all(name.startswith(f"{prefix}_") for name in found - plane - own)
    assert f"{prefix}_event_loop_delay_seconds" in found


@pytest.mark.parametrize(
    "prefix",
    [
        "dynamo_component",
        "dynamo_component_mine",
        "dynamo_request_plane",
        "dynamo_work_handler",
        "dynamometer",
        "process",
        "sglang:",
        "sglang:mine",
    ],
)
async def test_a_prefix_of_other_families_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"DYN_METRICS_PREFIX='{prefix}': must not begin with"):
        await serve(options(tmp_path, metrics_prefix=prefix))


@pytest.mark.parametrize("prefix", ["dynamo_frontend", "dynamo", "dynamo_components", "processes"])
async def test_a_prefix_that_looks_like_others_makes_names_of_its_own(
    prefix: str, tmp_path: Path
) -> None:
    wrong = options(tmp_path, metrics_prefix=prefix, host="300.1.1.1")
    with pytest.raises(SettingsError, match="--http-host, DYN_HTTP_HOST"):
        await serve(wrong)


def options(directory: Path, *, metrics_prefix: str, host: str = "127.0.0.1") -> FrontendOptions:
    return FrontendOptions(
        host=host,
        port=0,
        namespace=None,
        router_mode=RouterMode.ROUND_ROBIN,
        max_body_size=2**20,
        drain_delay=0,
        drain_timeout=0,
        discovery_directory=directory,
        metrics_prefix=metrics_prefix,
        buckets=FrontendBuckets.of(DEFAULT_BUCKET_RANGES),
    )


class Stumbling(FileDiscovery):
    """A discovery whose first reading raises an unexpected exception."""

    stumbled = False

    async def records(self) -> frozenset[Record]:
        if not self.stumbled:
            self.stumbled = True
            raise KeyError("id")
        return await super().records()


async def test_a_fault_does_not_leave_a_frontend_with_the_workers_it_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = Stumbling(tmp_path)
    follower = Follower(discovery, Fleet())
    record = Record(
        role=Role.WORKER, id=7, namespace="n", component="c", endpoint="e", state=State.READY,
        models=("m",), request_url="http://127.0.0.1:1",
    )  # fmt: skip
    async with discovery.register(record), follower.following(), asyncio.timeout(20):
        while not follower.fleet.ready:
            await asyncio.sleep(0.01)
    assert "discovery failed, and is restarted every" in caplog.text


async def test_models_lists_what_can_be_served_and_finds_it_by_an_adapters_name(
    site: Site, tmp_path: Path
) -> None:
    discovery = FileDiscovery(tmp_path)
    record = Record(
        role=Role.WORKER, id=9, namespace="dynamo", component="prefill", mode="prefill",
        models=("p",), request_url="http://127.0.0.1:1", state=State.READY,
    )  # fmt: skip

    async def get(path: str) -> tuple[int, Any]:
        async with site.session.get(site.url + path) as answer:
            return answer.status, await answer.json()

    card = {"id": "m", "object": "model"}
    async with discovery.register(record):
        assert await get("/v1/models") == (200, {"object": "list", "data": [card]})
        assert await get("/v1/models/m") == (200, card)
        assert await get("/v1/models/m:adapter") == (200, card)
        for name in ("p", "p:adapter", "n:m", "m2"):
            assert (await get(f"/v1/models/{name}"))[0] == 404


async def test_a_discovery_that_hangs_stops_neither_pages_nor_requests(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "READ_SECONDS", 0.1)
    answers = threading.Event()
    listdir = os.listdir

    def hanging(path: str | Path) -> list[str]:
        if str(path).startswith(str(tmp_path)):
            answers.wait(20)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", hanging)
    try:
        async with asyncio.timeout(10):
            for path in ("/metrics", "/health", "/live", "/v1/models"):
                async with site.session.get(site.url + path) as answer:
                    assert answer.status == 200
                    assert await answer.read()
            assert await site.chat() == 200
            assert await site.chat("never-seen") == 404
    finally:
        answers.set()


class Listed:
    """A discovery whose records a test sets."""

    fault = ""

    def __init__(self) -> None:
        self.shown: frozenset[Record] = frozenset()

    async def records(self) -> frozenset[Record]:
        return self.shown


def logged(discovery: Listed, fleet: Fleet) -> Follower:
    """Return a follower whose fleet's changes a frontend logs."""
    follower = Follower(cast("Discovery", discovery), fleet)
    runtime = DistributedRuntime()
    Frontend(follower=follower, metrics=FrontendMetrics(runtime.registry), page=runtime.page)
    return follower


async def test_the_log_says_why_a_process_gets_no_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    discovery = Listed()
    follower = logged(discovery, Fleet(engines=kinds.ENGINES))
    prefill = Record(
        role=Role.WORKER, id=7, namespace="n", component="c", mode="prefill", models=("m",),
        request_url="http://127.0.0.1:1", state=State.READY,
    )  # fmt: skip
    discovery.shown = frozenset({prefill, replace(prefill, id=8, engine="unheard-of")})
    await follower.refresh()
    assert "instance 0000000000000008 receives no requests: its engine 'unheard-of' is unknown" in (
        caplog.text
    )
    assert "m is not served: 'm' has only prefill workers" in caplog.text


def test_the_log_has_the_states_of_the_workers_of_a_model_that_is_not_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fleet = logged(Listed(), Fleet()).fleet
    worker = Record(
        role=Role.WORKER, id=7, namespace="n", component="c", models=("m",),
        request_url="http://127.0.0.1:1", state=State.READY,
    )  # fmt: skip
    fleet.update([worker])
    fleet.update([replace(worker, state=State.UNRESPONSIVE)])
    assert caplog.messages[-1] == "no worker serves m any longer (1 unresponsive)"
    prefill = replace(worker, mode="prefill", bootstrap="127.0.0.1:1")
    decode = replace(worker, id=8, mode="decode")
    fleet.update([prefill, decode])
    assert caplog.messages[-1] == "serving m"
    fleet.update([prefill, replace(decode, state=State.RESTARTING)])
    assert caplog.messages[-1] == (
        "m is not served: 'm' has 1 ready prefill worker and no ready decode worker (1 restarting)"
    )


def test_the_log_says_once_that_aggregated_workers_replace_prefill_and_decode_workers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = logged(Listed(), Fleet()).fleet
    alone = Record(
        role=Role.WORKER, id=7, namespace="n", component="c", models=("m",),
        request_url="http://127.0.0.1:1", state=State.READY,
    )  # fmt: skip
    prefill = replace(alone, id=8, mode="prefill", bootstrap="127.0.0.1:1")
    decodes = [replace(alone, id=id_, mode="decode") for id_ in (9, 10)]
    update = fleet.update
    update([alone])
    assert caplog.messages == []
    update([alone, prefill])
    one = "1 prefill worker gets no requests for m: aggregated workers serve the model"
    assert caplog.messages == [one]
    caplog.clear()
    # Another aggregated worker changes nothing for the prefill worker.
    update([alone, replace(alone, id=11), prefill, *decodes])
    two = "2 decode workers get no requests for m: aggregated workers serve the model"
    assert caplog.messages == [two]
    caplog.clear()
    update([alone, prefill, decodes[0]])
    update([prefill, decodes[0]])  # the pair serves the model
    assert caplog.messages == []
    update([alone, prefill, decodes[0]])
    assert caplog.messages == [one, one.replace("prefill", "decode")]


def test_the_log_says_once_that_a_worker_fits_none_of_those_that_serve_its_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = logged(Listed(), Fleet()).fleet
    decode = Record(
        role=Role.WORKER, id=9, namespace="n", component="c", models=("m",), mode="decode",
        request_url="http://127.0.0.1:1", state=State.READY, engine_info={"kv_block_size": 1},
    )  # fmt: skip
    prefill = replace(decode, id=8, mode="prefill", bootstrap="127.0.0.1:1")
    other = replace(prefill, id=7, engine_info={"kv_block_size": 16})
    fleet.update([prefill, decode])
    assert caplog.messages == []
    fleet.update([prefill, decode, other])
    fleet.update([prefill, decode, other, replace(decode, id=10)])
    (text,) = caplog.messages
    assert text == (
        "1 prefill worker gets no requests for m: kv_block_size is 16 at prefill worker "
        f"{7:016x} and 1 at decode worker {9:016x}"
    )
    caplog.clear()
    fleet.update([prefill, decode, replace(decode, id=11, namespace="other")])
    (text,) = caplog.messages
    assert text == (
        "1 decode worker gets no requests for m: namespace is 'n' at prefill worker "
        f"{8:016x} and 'other' at decode worker {11:016x}"
    )
