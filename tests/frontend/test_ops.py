"""The ops listener of a frontend: its routes, and their separation from the API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from dynamometer.errors import DiscoveryError
from dynamometer.frontend import ops
from dynamometer.frontend.ops import OpsListener
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.interface import RESTORE_SECONDS, Discovery, Processes
from dynamometer.runtime.discovery.locks import write_locked
from dynamometer.runtime.record import Record, Role
from processes import PYTHON, Process, refusing_port, running
from stack import eventually, http, ops_url

ROUTES = ("/sd", "/metrics_endpoints", "/engine_metrics", "/loads")
LISTS = ("/sd", "/metrics_endpoints")
OWN = Record(
    role=Role.FRONTEND, id=1, namespace="", component="frontend", system_url="http://127.0.0.1:8000"
)
WORKER = Record(
    role=Role.WORKER, id=2, namespace="dynamo", component="backend",
    system_url="http://127.0.0.1:8081",
)  # fmt: skip


class Scripted(FileDiscovery):
    """A discovery whose readings a test sets: the processes, or an error."""

    outcome: Processes | DiscoveryError

    async def processes(self) -> Processes:
        if isinstance(self.outcome, DiscoveryError):
            raise self.outcome
        return self.outcome


@asynccontextmanager
async def listening(discovery: Discovery) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        listener = OpsListener("127.0.0.1", 0)
        await stack.enter_async_context(listener.serving(discovery, OWN))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield str(listener.url), session


def seen(*records: Record) -> Processes:
    return Processes(frozenset(records))


@pytest.mark.parametrize("route", ROUTES)
async def test_a_frontend_that_has_not_read_discovery_has_no_list(
    tmp_path: Path, route: str
) -> None:
    discovery = Scripted(tmp_path)
    async with listening(discovery) as (url, session):
        outcomes: list[tuple[Processes | DiscoveryError, str]] = [
            (DiscoveryError("discovery: /kv does not answer"), "/kv does not answer"),
            (seen(), "does not show this frontend yet"),
            (seen(WORKER), "does not show this frontend yet"),
        ]
        for outcome, reason in outcomes:
            discovery.outcome = outcome
            async with session.get(url + route) as answer:
                assert answer.status == 503
                assert reason in (await answer.json())["error"]
        discovery.outcome = seen(OWN)
        async with session.get(url + route) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("route", LISTS)
async def test_the_last_known_targets_stay_while_discovery_cannot_be_read(
    tmp_path: Path, route: str
) -> None:
    discovery = Scripted(tmp_path)
    discovery.outcome = seen(OWN, WORKER)
    async with listening(discovery) as (url, session):
        async with session.get(url + route) as answer:
            known = await answer.json()
        for outcome in (DiscoveryError("discovery: /kv: No such file or directory"), seen()):
            discovery.outcome = outcome
            async with session.get(url + route) as answer:
                assert answer.status == 200
                assert await answer.json() == known
        discovery.outcome = seen(OWN)
        async with session.get(url + route) as answer:
            assert await answer.json() != known


async def test_a_live_process_stays_a_target_after_the_registry_was_emptied(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path)
    path = discovery.directory / f"{WORKER.id:016x}.json"
    fd = write_locked(path, WORKER.to_json())
    try:
        async with discovery.register(OWN), listening(discovery) as (url, session):
            assert await addresses_at(session, url) == ["127.0.0.1:8000", "127.0.0.1:8081"]
            for file in discovery.directory.iterdir():
                file.unlink()
            async with asyncio.timeout(5):
                while OWN not in await discovery.records():
                    await asyncio.sleep(0.02)
            assert await discovery.records() == {OWN}  # the worker has not written its record yet
            assert await addresses_at(session, url) == ["127.0.0.1:8000", "127.0.0.1:8081"]
    finally:
        os.close(fd)


async def test_a_process_that_is_not_restored_is_no_target_later(tmp_path: Path) -> None:
    discovery = Scripted(tmp_path)
    discovery.outcome = seen(OWN, WORKER)
    async with listening(discovery) as (url, session):
        assert len(await addresses_at(session, url)) == 2
        discovery.outcome = seen(OWN)
        discovery.restored_at = time.monotonic()
        assert len(await addresses_at(session, url)) == 2
        discovery.restored_at -= RESTORE_SECONDS
        assert len(await addresses_at(session, url)) == 1


async def addresses_at(session: aiohttp.ClientSession, url: str) -> list[str]:
    async with session.get(f"{url}/sd") as answer:
        return [address for group in await answer.json() for address in group["targets"]]


async def test_an_unknown_path_is_answered_with_the_routes(tmp_path: Path) -> None:
    async with listening(Scripted(tmp_path)) as (url, session):
        for path in ("/", "/sd/", "/metrics", "/v1/models"):
            async with session.get(url + path) as answer:
                assert answer.status == 404
                assert answer.headers["Content-Type"] == "application/json"
                body = await answer.json()
                assert path in body["error"]
                assert body["routes"] == list(ROUTES)


@pytest.mark.parametrize("route", [*ROUTES, "/other"])
async def test_a_web_page_whose_name_resolves_to_loopback_reads_nothing(
    tmp_path: Path, route: str
) -> None:
    discovery = Scripted(tmp_path)
    discovery.outcome = seen(OWN)
    async with listening(discovery) as (url, session):
        for host in ("evil.example", "evil.example:8002", "127.0.0.1.evil.example", "[", "@:x"):
            async with session.get(url + route, headers={"Host": host}) as answer:
                assert answer.status == 403
                assert f"the host {host!r} is not allowed" in (await answer.json())["error"]


async def test_addresses_and_names_of_this_machine_are_allowed(tmp_path: Path) -> None:
    discovery = Scripted(tmp_path)
    discovery.outcome = seen(OWN)
    own = socket.gethostname()
    async with listening(discovery) as (url, session):
        for host in ("127.0.0.1", "localhost:9", "LOCALHOST.", "[::1]:8002", "10.0.0.7:80", own):
            async with session.get(f"{url}/sd", headers={"Host": host}) as answer:
                assert answer.status == 200


def test_a_listener_for_other_machines_allows_the_name_of_a_service() -> None:
    with socket.socket() as bound:
        bound.bind(("0.0.0.0", 0))  # without listening
        assert ops.allowed_names(bound, "0.0.0.0") is None


async def test_only_get_and_head_are_allowed(tmp_path: Path) -> None:
    discovery = Scripted(tmp_path)
    discovery.outcome = seen(OWN)
    async with listening(discovery) as (url, session):
        async with session.head(f"{url}/sd") as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            async with session.request(method, f"{url}/sd", data=b"x") as answer:
                assert answer.status == 405
                assert answer.headers["Allow"] == "GET, HEAD"
                assert method in (await answer.json())["error"]


async def test_a_fault_of_a_route_is_answered_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = Scripted(tmp_path)  # without an outcome
    async with listening(discovery) as (url, session), session.get(f"{url}/sd") as answer:
        assert answer.status == 500
        assert "see the log" in (await answer.json())["error"]
    assert "GET /sd failed" in caplog.text


# Real frontends.


def frontend(directory: Path, *flags: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    command = [PYTHON, "-m", "dynamometer.frontend", "--http-port", "0", *flags]
    return command, {"DYN_FILE_KV": str(directory / "kv")} | environment


def api_url(process: Process) -> str:
    return process.wait_for(r"OpenAI-compatible at (\S+)/v1", within=20)[1]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_two_ports_have_different_routes(tmp_path: Path, processes: str) -> None:
    command, environment = frontend(tmp_path, "--ops-port", "0", "--processes", processes)
    with running(command, tmp_path / "log", environment) as process:
        api, operations = api_url(process), ops_url(process)
        for path in ROUTES:
            assert http(operations + path).status == 200
            assert http(api + path).status == 404
        for path in ("/metrics", "/health", "/live", "/v1/health/ready", "/v1/models"):
            assert http(operations + path).status == 404
        for path in ("/metrics", "/health", "/live", "/v1/models"):
            assert http(api + path).status == 200
        (group,) = json.loads(http(f"{operations}/sd").body)
        assert group["targets"] == [api.removeprefix("http://")]
        assert group["labels"]["__meta_dynamometer_role"] == "frontend"


def test_a_moved_page_and_a_wildcard_address_are_listed_as_reachable(tmp_path: Path) -> None:
    command, environment = frontend(
        tmp_path, "--ops-port", "0", "--http-host", "0.0.0.0",
        DYN_HTTP_SVC_METRICS_PATH="/own/metrics",
    )  # fmt: skip
    with running(command, tmp_path / "log", environment) as process:
        (group,) = json.loads(http(f"{ops_url(process)}/sd").body)
        page = f"http://{group['targets'][0]}{group['labels']['__metrics_path__']}"
        assert http(page).body.startswith(b"# HELP")


def test_a_frontend_without_an_ops_listener_says_nothing_about_it(tmp_path: Path) -> None:
    command, environment = frontend(tmp_path, DYN_OPS_PORT="-1")
    with running(command, tmp_path / "log", environment) as process:
        api_url(process)
        assert "ops" not in process.log


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_requested_port_that_is_in_use_is_an_error(tmp_path: Path, processes: str) -> None:
    port = str(refusing_port())
    command, environment = frontend(tmp_path, "--processes", processes, DYN_OPS_PORT=port)
    with running(command, tmp_path / "log", environment) as process:
        assert process.wait(within=20) == 1
        assert f"port {port} on 127.0.0.1 is already in use" in process.log
        assert "--ops-port, DYN_OPS_PORT" in process.log
        assert "Traceback" not in process.log


def test_an_address_of_another_machine_is_an_error(tmp_path: Path) -> None:
    command, environment = frontend(tmp_path, "--ops-host", "192.0.2.1", "--ops-port", "0")
    with running(command, tmp_path / "log", environment) as process:
        assert process.wait(within=20) == 2
        assert "--ops-host, DYN_OPS_HOST: '192.0.2.1'" in process.log


async def test_the_default_port_that_is_in_use_is_replaced_by_a_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        monkeypatch.setattr(ops, "DEFAULT_OPS_PORT", port)
        listener = OpsListener("127.0.0.1", None)
        async with listener.serving(Scripted(tmp_path), OWN):
            listener.announce()
        assert not str(listener.url).endswith(f":{port}")
        assert f"port {port} is already in use" in caplog.text
        assert f"are at {listener.url};" in caplog.text
        assert "--ops-port" in caplog.text


def test_the_ops_listener_survives_the_death_of_a_process(tmp_path: Path) -> None:
    command, environment = frontend(tmp_path, "--ops-port", "0", "--processes", "2")
    with running(command, tmp_path / "log", environment) as process:
        api_url(process)
        url = f"{ops_url(process)}/sd"
        before = http(url).body
        for member in process.descendants():
            member.kill()
        assert http(url).body == before
        process.wait_for("restarting now", within=10)
        assert http(url).body == before


def test_the_ops_listener_answers_until_the_end(tmp_path: Path) -> None:
    command, environment = frontend(tmp_path, "--ops-port", "0", "--drain-delay", "30")
    with running(command, tmp_path / "log", environment) as process:
        api, url = api_url(process), f"{ops_url(process)}/sd"
        before = http(url).body
        process.signal(signal.SIGTERM)
        eventually(lambda: http(f"{api}/health").status == 503, within=10, what="draining")
        assert http(url).body == before
        process.signal(signal.SIGTERM)
        assert process.wait(within=10) == 0
