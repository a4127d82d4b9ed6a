"""A worker whose engine reports no facts about itself serves requests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from dynamometer.engines.interface import Launch
from dynamometer.engines.mocker import Mocker
from dynamometer.http import addresses, aiohttp_adapter
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.runtime.identity import new_id
from dynamometer.runtime.record import Json, State
from dynamometer.variables import LOOPBACK
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.run_directory import run_directory
from dynamometer.worker.supervisor import Supervisor
from waiting import run_ready_tasks, until

# Its model answers; what it says of itself is what a test wants.
ENGINE = """
import asyncio, sys
from aiohttp import web

asked = []

async def fine(_):
    return web.json_response({"data": [{"id": "m", "max_model_len": 64}]})

async def info(_):
    if sys.argv[2] == "hangs":
        await asyncio.sleep(600)
    if sys.argv[2] == "fails" or (sys.argv[2] == "fails once" and not asked):
        asked.append(True)
        raise web.HTTPInternalServerError
    if sys.argv[2] == "nonsense":
        return web.Response(body=b"[" * 100_000)
    return web.json_response({"version": "1", "page_size": 16, "max_total_num_tokens": 1600})

app = web.Application()
app.router.add_get("/health_generate", fine)
app.router.add_get("/v1/models", fine)
app.router.add_get("/server_info", info)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


class Scripted(Mocker):
    """The script above, as an engine; it is asked as the mocker is."""

    name = "scripted"

    def __init__(self, behaviour: str) -> None:
        self._behaviour = behaviour

    def plan(
        self,
        arguments: Sequence[str],
        *,
        directory: Path,
        python: str,
        transfer_host: str = LOOPBACK,
    ) -> Launch:
        port = addresses.free_port()
        return Launch(
            command=[python, "-c", ENGINE, str(port), self._behaviour],
            environment={},
            url=f"http://127.0.0.1:{port}",
            model="m",
            model_path="m",
        )

    def describe_exit(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:
        return f"exit code {exit_code}"

    def describe_progress(self, log: Sequence[str]) -> str:
        return ""


async def test_an_engine_that_stops_between_head_and_body_is_not_healthy(tmp_path: Path) -> None:
    stuck = asyncio.Event()
    body = b"fine"

    async def health(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await stuck.wait()
        await response.write(body)
        return response

    app = web.Application()
    app.router.add_get("/health_generate", health)
    listener = addresses.listen("127.0.0.1", 0, setting="port", host_setting="host")
    engine = Scripted("answers")
    launch = engine.plan((), directory=tmp_path, python=sys.executable)
    launch = replace(launch, url=addresses.url(listener))
    async with serving(app, listener), aiohttp_adapter.session(keepalive_seconds=None) as session:
        client = EngineClient(session, engine, launch)
        assert not await client.check_health(timeout=0.3)
        stuck.set()
        assert await client.check_health(timeout=5)


TOLD = {"version": "1", "context_length": 64, "total_kv_blocks": 100, "kv_block_size": 16}


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ("answers", [TOLD]),
        ("fails once", [{}, TOLD]),
        ("fails", [{}]),
        ("hangs", [{}]),
        ("nonsense", [{}]),
    ],
)
async def test_a_worker_is_ready_whatever_its_engine_says_of_itself(
    behaviour: str, told: Sequence[Mapping[str, Json]]
) -> None:
    engine = Scripted(behaviour)
    changes = asyncio.Queue[tuple[State, Mapping[str, Json]]]()
    session = aiohttp_adapter.session(keepalive_seconds=3)
    with run_directory(new_id()) as directory:
        launch = engine.plan([], directory=directory.path, python=sys.executable)
        client = EngineClient(session, engine, launch)
        supervisor = Supervisor(engine, launch, client, directory)

        async def changed() -> None:
            changes.put_nowait((supervisor.state, supervisor.info))

        async with session, asyncio.timeout(30), supervisor.running(changed, lambda: True):
            for expected in told:
                assert await changes.get() == (State.READY, expected)


class Broken(EngineClient):
    """A client that raises an unexpected exception."""

    async def check_health(self, *, timeout: float = 1.0) -> bool:
        raise KeyError("data")


async def test_a_fault_after_the_start_ends_no_worker_that_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Scripted("fails once")
    session = aiohttp_adapter.session(keepalive_seconds=3)
    with run_directory(new_id()) as directory:
        launch = engine.plan([], directory=directory.path, python=sys.executable)
        client = EngineClient(session, engine, launch)
        supervisor = Supervisor(engine, launch, client, directory)
        told = asyncio.Event()

        async def changed() -> None:
            if supervisor.info:
                told.set()
                raise KeyError("info")

        async with session, asyncio.timeout(30), supervisor.running(changed, lambda: True) as ended:
            await told.wait()
            await until(lambda: "cannot request facts about the engine" in caplog.text)
            await run_ready_tasks()
            assert not ended.done()
            assert supervisor.state is State.READY


async def test_a_worker_that_cannot_watch_its_engine_ends_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker would otherwise stay `starting`."""
    engine = Scripted("answers")
    session = aiohttp_adapter.session(keepalive_seconds=3)
    with run_directory(new_id()) as directory:
        launch = engine.plan([], directory=directory.path, python=sys.executable)
        client = Broken(session, engine, launch)
        supervisor = Supervisor(engine, launch, client, directory)

        async def changed() -> None:
            pass

        async with session, asyncio.timeout(30), supervisor.running(changed, lambda: True) as ended:
            error = await ended
            assert str(error) == "a fault of this worker ended its engine: KeyError('data')"
            assert supervisor.state is State.FAILED
    assert "the engine cannot be watched any longer" in caplog.text
    assert asyncio.all_tasks() == {asyncio.current_task()}
