"""The answers to probes of a frontend: `/health`, `/live` and `/v1/health/ready`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from bench import CHAT

from dynamometer.engines import kinds
from dynamometer.errors import SettingsError
from dynamometer.frontend.app import Frontend, check_paths
from dynamometer.frontend.forwarding import Forwarder
from dynamometer.frontend.routing import Router, RouterMode
from dynamometer.frontend.service_metrics import FrontendMetrics
from dynamometer.http import addresses, server
from dynamometer.http.client import Client
from dynamometer.http.server import Limits
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.follower import Follower
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.fleet import Fleet
from dynamometer.runtime.record import Record, Role, State
from dynamometer.variables import FRONTEND_PATHS

READY = "/v1/health/ready"


def worker(number: int, *models: str, **changes: object) -> Record:
    made = Record(
        role=Role.WORKER,
        id=number,
        namespace="dynamo",
        component="backend",
        endpoint="generate",
        models=models or ("m",),
        request_url=f"http://127.0.0.1:{number}",
        state=State.READY,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class Site:
    """A frontend whose fleet a test sets."""

    session: aiohttp.ClientSession
    url: str
    frontend: Frontend

    def show(self, *records: Record) -> None:
        self.frontend.fleet.update(records)

    async def get(self, path: str) -> tuple[int, Mapping[str, object]]:
        async with self.session.get(self.url + path) as answer:
            return answer.status, await answer.json()

    async def message(self, path: str, model: str | None = None) -> tuple[int, str]:
        """Return the status and the message of an error; with a model, of a request to it."""
        method, body = ("GET", None) if model is None else ("POST", {"model": model})
        async with self.session.request(method, self.url + path, json=body) as answer:
            return answer.status, (await answer.json())["error"]["message"]


@pytest.fixture
def paths() -> Mapping[str, str]:
    return FRONTEND_PATHS


@pytest.fixture
async def site(tmp_path: Path, paths: Mapping[str, str]) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        runtime, fleet = DistributedRuntime(), Fleet()
        follower = Follower(FileDiscovery(tmp_path), fleet)
        metrics = FrontendMetrics(runtime.registry)
        frontend = Frontend(follower=follower, metrics=metrics, page=runtime.page, paths=paths)
        client = Client(idle_seconds=1)
        stack.callback(client.close)
        forwarder = Forwarder(
            routes=kinds.ROUTES,
            router=Router(RouterMode.ROUND_ROBIN, fleet),
            metrics=metrics,
            client=client,
            refresh=follower.refresh,
            max_body_size=2**20,
        )
        listener = addresses.listen("127.0.0.1", 0, setting="")
        limits = Limits(body_bytes=2**20)
        await stack.enter_async_context(
            server.serving(frontend.handlers(forwarder), listener, limits=limits)
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Site(session, addresses.url(listener), frontend)


async def test_frontend_is_ready_when_a_model_can_be_served(site: Site) -> None:
    assert await site.get(READY) == (
        503,
        {"status": "notready", "reason": "no worker is ready", "models": []},
    )
    site.show(worker(1, state=State.STARTING))
    assert await site.get(READY) == (
        503,
        {"status": "notready", "reason": "no worker is ready (1 starting)", "models": []},
    )
    site.show(worker(1))
    assert await site.get(READY) == (200, {"status": "ready", "models": ["m"]})
    site.show(worker(1, state=State.UNRESPONSIVE))
    status, body = await site.get(READY)
    assert (status, body["reason"]) == (503, "no worker is ready (1 unresponsive)")
    site.show()
    assert (await site.get(READY))[0] == 503


@pytest.mark.parametrize("state", [state for state in State if state is not State.READY])
async def test_worker_that_is_not_ready_makes_no_model_ready(site: Site, state: State) -> None:
    site.show(worker(1, state=state))
    assert (await site.get(READY))[0] == 503


async def test_one_model_is_ready_when_it_can_be_served(site: Site) -> None:
    site.show(
        worker(1, "org/a b"), worker(2, "m", state=State.FAILED), worker(3, "p", mode="prefill")
    )
    assert (await site.get(READY))[0] == 200
    assert (await site.get(f"{READY}?model=org%2Fa+b"))[0] == 200
    assert (await site.get(f"{READY}?model=org/a%20b:adapter"))[0] == 200
    status, body = await site.get(f"{READY}?model=m")
    assert status == 503
    assert body == {
        "status": "notready",
        "reason": "no worker serves 'm' now (1 failed)",
        "models": ["org/a b"],
    }
    status, body = await site.get(f"{READY}?model=p")
    assert status == 503
    assert body["reason"] == "'p' has only prefill workers, which cannot answer a request alone"
    status, body = await site.get(f"{READY}?model=org%2Fa+b&model=unknown")
    assert (status, body["reason"]) == (503, "no worker serves 'unknown' now")


SIDES = [None, *State]


@pytest.mark.parametrize("prefill", SIDES)
@pytest.mark.parametrize("decode", SIDES)
async def test_a_model_served_in_pairs_is_ready_with_both_sides(
    site: Site, prefill: State | None, decode: State | None
) -> None:
    records = []
    if prefill is not None:
        records.append(worker(1, mode="prefill", bootstrap="127.0.0.1:1", state=prefill))
    if decode is not None:
        records.append(worker(2, mode="decode", state=decode))
    site.show(*records)
    served = prefill is decode is State.READY
    for query in ("", "?model=m", "?model=m:adapter"):
        status, body = await site.get(READY + query)
        assert (status, body["status"]) == ((200, "ready") if served else (503, "notready"))
        assert body["models"] == (["m"] if served else [])
        assert ("reason" in body) is not served


async def test_readiness_names_the_side_that_is_missing(site: Site) -> None:
    prefill = worker(1, mode="prefill", bootstrap="127.0.0.1:1")
    decode = worker(2, mode="decode")
    site.show(prefill)
    _, body = await site.get(READY)
    assert body["reason"] == (
        "this deployment has only prefill workers, which cannot answer a request alone"
    )
    site.show(replace(prefill, state=State.STARTING), decode, worker(3, mode="decode"))
    _, body = await site.get(f"{READY}?model=m")
    assert body["reason"] == (
        "'m' has 2 ready decode workers and no ready prefill worker (1 starting)"
    )
    site.show(prefill, replace(decode, namespace="other"))
    _, body = await site.get(f"{READY}?model=m")
    assert body["reason"] == (
        "'m' has 1 ready prefill worker and 1 ready decode worker that do not fit: namespace is "
        f"'dynamo' at prefill worker {1:016x} and 'other' at decode worker {2:016x}"
    )
    site.show(prefill, decode)
    assert await site.get(READY) == (200, {"status": "ready", "models": ["m"]})
    site.show(prefill, decode, worker(3, "n", state=State.STARTING))
    assert (await site.get(f"{READY}?model=m&model=n"))[0] == 503


async def test_an_empty_name_of_a_model_is_not_any_model(site: Site) -> None:
    site.show(worker(1))
    for query in ("?model=", "?model", "?model=m&model="):
        status, body = await site.get(READY + query)
        assert (status, body["reason"]) == (503, "no worker serves '' now")


async def test_frontend_that_is_ending_is_not_ready(site: Site) -> None:
    site.show(worker(1))
    site.frontend.probes.draining = True
    status, body = await site.get(READY)
    assert (status, body["reason"]) == (503, "this frontend is ending")


async def test_health_has_the_form_of_nvidia_dynamo_in_any_state(site: Site) -> None:
    expected: dict[str, object] = {"status": "healthy", "endpoints": [], "instances": []}
    assert await site.get("/health") == (200, expected)
    site.show(worker(7), worker(8, state=State.UNRESPONSIVE))
    instance = {
        "namespace": "dynamo",
        "component": "backend",
        "endpoint": "generate",
        "instance_id": 7,
        "transport": {"http": "http://127.0.0.1:7"},
    }
    expected |= {"endpoints": ["dyn://dynamo.backend.generate"], "instances": [instance]}
    assert await site.get("/health") == (200, expected)


async def test_reasons_name_a_discovery_that_was_never_read(site: Site, tmp_path: Path) -> None:
    (tmp_path / "instances").rmdir()
    error = f"discovery: {tmp_path}/instances: No such file or directory"
    for path, model in (("/v1/models", None), ("/v1/models/m", None), (CHAT, "m")):
        assert await site.message(path, model) == (503, f"Not available: {error}; try again")
    for path in (READY, f"{READY}?model=m"):
        assert await site.get(path) == (503, {"status": "notready", "reason": error, "models": []})
    status, body = await site.get("/health")
    assert (status, body["status"], body["message"]) == (200, "healthy", error)


async def test_reasons_name_a_discovery_that_cannot_be_read_any_longer(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "instances").rmdir()
    error = f"discovery: {tmp_path}/instances: No such file or directory"
    site.show(worker(1), worker(2, "n", state=State.STARTING))
    for path in ("/v1/models/unknown", CHAT):
        status, message = await site.message(path, "unknown" if path == CHAT else None)
        assert status == 404
        assert message.endswith(f"'unknown' is not known, and new workers cannot be found: {error}")
    assert (await site.get(READY))[0] == (await site.get("/v1/models"))[0] == 200
    status, body = await site.get(f"{READY}?model=n")
    known = "(last known: no worker serves 'n' now (1 starting))"
    assert (status, body["reason"]) == (503, f"{error} {known}")
    (tmp_path / "instances").mkdir()
    assert await site.get("/v1/models") == (200, {"object": "list", "data": []})
    assert (await site.get(READY))[1]["reason"] == "no worker is ready"
    assert "message" not in (await site.get("/health"))[1]


async def test_probes_do_not_wait_for_discovery(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.show(worker(1))
    answers, listdir = threading.Event(), os.listdir

    def hanging(path: str | Path) -> list[str]:
        if str(path).startswith(str(tmp_path)):
            answers.wait(20)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", hanging)
    refreshing = asyncio.create_task(site.get("/v1/models"))
    try:
        await asyncio.sleep(0.05)
        for path in ("/health", "/live", READY, f"{READY}?model=m"):
            started = time.perf_counter()
            assert (await site.get(path))[0] == 200
            assert time.perf_counter() - started < 0.5
        assert (await site.get(f"{READY}?model=unknown"))[0] == 503
        assert not refreshing.done()
    finally:
        answers.set()
        await refreshing


@pytest.mark.parametrize(
    "paths",
    [
        dict(
            zip(FRONTEND_PATHS, ("/a/health", "/a/live", "/health", "/-/metrics"), strict=True),
        )
    ],
)
async def test_variables_move_pages_and_probes(site: Site) -> None:
    site.show(worker(1))
    assert (await site.get("/a/health"))[1]["status"] == "healthy"
    assert (await site.get("/a/live"))[1]["status"] == "live"
    assert await site.get("/health") == (200, {"status": "ready", "models": ["m"]})
    async with site.session.get(f"{site.url}/-/metrics") as answer:
        assert "dynamo_frontend_model_ready" in await answer.text()
    for path in ("/live", "/metrics", READY):
        assert (await site.get(path))[0] == 404


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"DYN_HTTP_SVC_HEALTH_PATH": "/live"},
            "^DYN_HTTP_SVC_HEALTH_PATH='/live': the pages and probes of a frontend need different",
        ),
        (
            {"DYN_HTTP_SVC_READY_PATH": "/x", "DYN_HTTP_SVC_METRICS_PATH": "/x"},
            "^DYN_HTTP_SVC_READY_PATH='/x' and DYN_HTTP_SVC_METRICS_PATH='/x': the pages",
        ),
        (
            {"DYN_HTTP_SVC_LIVE_PATH": "/metrics", "DYN_HTTP_SVC_READY_PATH": "/y"},
            "^DYN_HTTP_SVC_LIVE_PATH='/metrics': the pages",
        ),
        ({"DYN_HTTP_SVC_HEALTH_PATH": CHAT}, f"^DYN_HTTP_SVC_HEALTH_PATH='{CHAT}': the OpenAI"),
        ({"DYN_HTTP_SVC_METRICS_PATH": "/v1/models"}, "choose another path, such as /custom/"),
        ({"DYN_HTTP_SVC_READY_PATH": "/v1/models/m/ready"}, "choose another path"),
    ],
)
def test_path_of_two_routes_is_refused(changes: Mapping[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_paths({**FRONTEND_PATHS, **changes})


def test_paths_may_be_exchanged() -> None:
    check_paths(
        {
            **FRONTEND_PATHS,
            "DYN_HTTP_SVC_HEALTH_PATH": "/live",
            "DYN_HTTP_SVC_LIVE_PATH": "/health",
        }
    )
