"""The questions to an engine that is quiet, and the state that follows from its answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from dynamometer.engines.interface import Launch
from dynamometer.engines.sglang import SGLang
from dynamometer.http import addresses, aiohttp_adapter
from dynamometer.http.aiohttp_adapter import serving
from dynamometer.runtime.lifecycle import EngineExit, ExitCause, Lifecycle
from dynamometer.runtime.record import State
from dynamometer.settings import HealthCheckSettings
from dynamometer.worker import progress, watchdog
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.incidents import Incidents
from dynamometer.worker.watchdog import Watchdog
from waiting import until

TICK = 0.02
HANG = 10 * TICK


class Engine:
    """A simulated SGLang of two ranks; each route can be stopped, or answer with a status.

    Attributes:
        stopped: the routes that do not answer, and `rank 1` for its beats.
        statuses: the status of each route; 200 by default.
        requests: the number of requests to each route.
        canaries: the bodies of the canaries.
    """

    def __init__(self) -> None:
        self.stopped: set[str] = set()
        self.statuses: dict[str, int] = {}
        self.requests: Counter[str] = Counter()
        self.canaries: list[dict[str, object]] = []
        self._beats = [1.0, 1.0]

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/loads", self._loads)
        app.router.add_put("/generate", self._generate)
        app.router.add_get("/health_generate", self._answer)
        return app

    async def _answer(self, request: web.Request, body: object = None) -> web.Response:
        self.requests[request.path] += 1
        while request.path in self.stopped:
            await asyncio.sleep(TICK / 2)
        return web.json_response(body, status=self.statuses.get(request.path, 200))

    async def _loads(self, request: web.Request) -> web.Response:
        for rank in (0, 1):
            self._beats[rank] += f"rank {rank}" not in self.stopped
        members = [
            {"dp_rank": rank, "timestamp": beat, "num_waiting_reqs": 0}
            for rank, beat in enumerate(self._beats)
        ]
        return await self._answer(request, {"loads": members})

    async def _generate(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return web.json_response({}, status=400)
        body = await request.json()
        self.canaries.append(body)
        while f"rank {body['routed_dp_rank']}" in self.stopped:
            await asyncio.sleep(TICK / 2)
        return await self._answer(request)


class Worker:
    """The watchdog of an engine that is ready.

    Attributes:
        changes: the state after each change.
        hangs: the reason of each incident.
        progressed: the ranks that have shown progress.
        answering: True while requests are answered.
    """

    def __init__(self, url: str) -> None:
        self.changes: list[State] = []
        self.hangs: list[str] = []
        self.progressed: set[int] = set()
        self.answering = False
        self.lifecycle = Lifecycle(0.0)
        self.lifecycle.note_started(1.0)
        self.lifecycle.note_ready(2.0)
        self._launch = Launch(command=[], environment={}, url=url, model="m", model_path="m")

    @asynccontextmanager
    async def watched(
        self,
        *,
        enabled: bool = True,
        wait: float = 2 * TICK,
        request: float = HANG / 2,
        hang: float = HANG,
    ) -> AsyncIterator[Watchdog]:
        async with aiohttp_adapter.session(keepalive_seconds=None) as session:
            found = Watchdog(
                self.lifecycle,
                Incidents(self.lifecycle, self._change, self._hang),
                EngineClient(session, SGLang(), self._launch),
                HealthCheckSettings(enabled=enabled, wait_seconds=wait, request_seconds=request),
                hang_seconds=hang,
                take_progress=lambda: self.answering,
                on_progress=self.progressed.add,
            )
            task = asyncio.create_task(found.run())
            try:
                yield found
            finally:
                task.cancel()
                await asyncio.wait({task})

    async def _change(self) -> None:
        self.changes.append(self.lifecycle.state)

    async def _hang(self, reason: str) -> None:
        self.hangs.append(reason)


@pytest.fixture
def tick() -> float:
    return TICK


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch, tick: float) -> None:
    monkeypatch.setattr(progress, "TICK_SECONDS", tick)
    monkeypatch.setattr(progress, "_LATE_SECONDS", 5 * tick)
    monkeypatch.setattr(watchdog, "TICK_SECONDS", tick)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def worker(engine: Engine) -> AsyncIterator[Worker]:
    listener = addresses.listen("127.0.0.1", 0, setting="--port")
    async with serving(engine.application(), listener):
        yield Worker(addresses.url(listener))


def unresponsive(worker: Worker) -> Callable[[], bool]:
    return lambda: worker.lifecycle.state is State.UNRESPONSIVE


def ready(worker: Worker) -> Callable[[], bool]:
    return lambda: worker.lifecycle.state is State.READY


async def asked(engine: Engine, path: str, times: int = 5) -> None:
    """Wait until a route was requested some more times."""
    before = engine.requests[path]
    await until(lambda: engine.requests[path] >= before + times)


@pytest.mark.parametrize(
    ("stopped", "reason"),
    [
        ({"/v1/loads", "/generate"}, "its server does not answer"),
        ({"rank 1"}, "data-parallel rank 1 does not answer"),
        ({"rank 0", "rank 1", "/generate"}, "data-parallel ranks 0, 1 do not answer"),
        ({"/generate"}, "its ranks work, but no answer reaches its server"),
    ],
)
async def test_the_part_that_does_not_answer_is_the_reason(
    engine: Engine, worker: Worker, stopped: set[str], reason: str
) -> None:
    async with worker.watched():
        await asked(engine, "/generate")
        assert not worker.changes
        engine.stopped = stopped
        await until(lambda: reason in worker.lifecycle.reason)
        assert unresponsive(worker)()
        engine.stopped = set()
        await until(ready(worker))
        assert worker.lifecycle.reason == ""
    assert worker.changes[0] is State.UNRESPONSIVE
    assert worker.changes[-1] is State.READY
    assert len(worker.hangs) == 1  # once in an incident, although its reason may change


async def test_each_rank_gets_canaries(engine: Engine, worker: Worker) -> None:
    async with worker.watched():
        await until(lambda: len({str(one["routed_dp_rank"]) for one in engine.canaries}) == 2)


async def test_an_engine_that_answers_requests_is_not_asked(engine: Engine, worker: Worker) -> None:
    worker.answering = True
    async with worker.watched():
        await asked(engine, "/v1/loads")  # which of its two ranks answer is not known
        assert not engine.requests["/generate"]
        await until(lambda: worker.progressed == {0, 1})


async def test_nothing_is_asked_if_the_checks_are_disabled(engine: Engine, worker: Worker) -> None:
    async with worker.watched(enabled=False):
        await asyncio.sleep(5 * TICK)
    assert not engine.requests


@pytest.mark.parametrize("status", [400, 404, 405, 422])
async def test_an_engine_that_does_not_know_canaries_is_asked_by_its_health_route(
    engine: Engine, worker: Worker, status: int
) -> None:
    engine.statuses["/generate"] = status  # SGLang's Rust server: 405
    async with worker.watched():
        await asked(engine, "/health_generate")
        assert engine.requests["/generate"] == 1
        engine.stopped = {"/health_generate"}
        await until(unresponsive(worker))


async def test_an_engine_without_beats_is_asked_by_its_health_route(
    engine: Engine, worker: Worker
) -> None:
    engine.statuses["/v1/loads"] = 404
    async with worker.watched():
        await asked(engine, "/health_generate")
        assert not engine.requests["/generate"]
        assert engine.requests["/v1/loads"] == 1
        assert ready(worker)()
        engine.statuses["/health_generate"] = 503
        await until(unresponsive(worker))
        assert "its server does not answer" in worker.lifecycle.reason
        engine.statuses["/health_generate"] = 200
        await until(ready(worker))


async def test_ranks_are_watched_after_an_error_of_their_route(
    engine: Engine, worker: Worker
) -> None:
    engine.statuses["/v1/loads"] = 500
    async with worker.watched():
        await asked(engine, "/health_generate")
        assert ready(worker)()
        engine.statuses.clear()
        await asked(engine, "/generate")
        engine.stopped = {"rank 1"}
        await until(unresponsive(worker))
    assert "rank 1" in worker.lifecycle.reason


async def test_a_full_queue_is_not_a_hang(engine: Engine, worker: Worker) -> None:
    engine.statuses["/generate"] = 503
    async with worker.watched():
        await asked(engine, "/generate", 30)
    assert not worker.changes


@pytest.mark.parametrize("tick", [0.1])
@pytest.mark.parametrize(
    ("wait", "request_time", "hang"), [(1.0, 1e-9, 1.0), (1e-9, 1.0, 1.0), (1.0, 1.0, 1e-9)]
)
async def test_an_engine_that_answers_is_not_a_hang_whatever_the_settings(
    engine: Engine, worker: Worker, wait: float, request_time: float, hang: float
) -> None:
    async with worker.watched(wait=wait, request=request_time, hang=hang):
        await asked(engine, "/v1/loads", 10)
        await asked(engine, "/generate", 3)
    assert not worker.changes


async def test_answers_of_requests_end_an_incident(engine: Engine, worker: Worker) -> None:
    engine.stopped = {"/generate"}
    async with worker.watched():
        await until(unresponsive(worker))
        worker.answering = True
        await until(ready(worker))


async def test_a_restarted_engine_has_no_past(engine: Engine, worker: Worker) -> None:
    async with worker.watched():
        engine.stopped = {"/v1/loads", "/generate"}
        await until(unresponsive(worker))
        gone = EngineExit(code=-9, cause=ExitCause.SIGNAL, description="killed")
        worker.lifecycle.note_exit(3.0, gone)
        worker.progressed.clear()
        engine.stopped = set()
        worker.lifecycle.note_started(4.0)
        worker.lifecycle.note_ready(5.0)
        await until(lambda: worker.progressed == {0, 1})
        assert ready(worker)()
    assert worker.changes == [State.UNRESPONSIVE]


async def test_no_task_is_left(engine: Engine, worker: Worker) -> None:
    engine.stopped = {"/v1/loads", "/generate"}
    async with worker.watched():
        await until(unresponsive(worker))
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert left.isdisjoint({"beats", "canary", "hang"})
