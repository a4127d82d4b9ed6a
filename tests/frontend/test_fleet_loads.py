"""`/loads`: each worker, each data-parallel rank, and the total."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from dynamometer.engines.load_signals import EngineLoad
from dynamometer.exposition.families import Family
from dynamometer.frontend.fleet_fetches import FleetFetches
from dynamometer.frontend.fleet_loads import FleetLoads
from dynamometer.http.aiohttp_adapter import session
from dynamometer.metrics.instruments import InstrumentRegistry
from dynamometer.metrics.page import MetricsPage
from dynamometer.names import labels
from dynamometer.process.background import BackgroundThread
from dynamometer.runtime.record import Record, Role, State
from fleet_pages import FleetServer, serving_pages
from parsing import parse


@dataclass
class Engine:
    """The source of an engine's families."""

    name: str
    owner: str
    lines: str
    errors: Mapping[str, int] = field(default_factory=dict)

    def families(self) -> Sequence[Family]:
        return parse(self.lines.encode())


def ranks(*loads: tuple[float, float, float]) -> str:
    """Return the gauges of an engine, with the running, the queued and the usage of each rank."""
    text = ""
    for place, name in enumerate(("num_running_reqs", "num_queue_reqs", "token_usage")):
        text += f"# TYPE sglang:{name} gauge\n"
        for rank, load in enumerate(loads):
            text += f'sglang:{name}{{dp_rank="{rank}",tp_rank="0"}} {load[place]}\n'
    return text


def page(*engines: tuple[str, str]) -> MetricsPage:
    """Return the page of a worker, or of an exporter, from the ids and gauges of its engines."""
    made = MetricsPage(InstrumentRegistry())
    for number, (id_, lines) in enumerate(engines):
        name = f"engine-{number}"
        own = {labels.MODEL: "m", labels.WORKER_ID: id_}
        if len(engines) > 1:
            own[labels.ENGINE] = name
        made.add(Engine(name, name, lines))
        made.derive(EngineLoad(name, lambda own=own: own, ranks=True))  # type: ignore[misc]
    return made


@dataclass
class Loads:
    server: FleetServer
    records: list[Record]
    loads: FleetLoads

    async def read(self) -> Any:
        return json.loads(await self.loads.read())


@pytest.fixture
async def loads() -> AsyncIterator[Loads]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving_pages())
        records: list[Record] = []

        async def processes() -> Iterable[Record]:
            return records

        client = await stack.enter_async_context(session(keepalive_seconds=30.0))
        thread = BackgroundThread("fleet")
        fetches = FleetFetches(processes, client, thread, deadline=10.0)
        stack.push_async_callback(fetches.close)
        yield Loads(server, records, FleetLoads(fetches, thread))


def figures(value: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(value[name] for name in ("running", "queued", "kv_usage"))


async def test_each_worker_and_each_rank_has_its_load_and_there_is_a_total(loads: Loads) -> None:
    one, two = f"{1:016x}", f"{2:016x}"
    loads.server.pages[1] = page((one, ranks((3, 1, 0.5), (4, 0, 0.25))))
    loads.server.pages[2] = page((two, ranks((1, 2, 0.75), (0, 0, 0.0))))
    loads.records += [
        loads.server.record(1, engine="sglang"),
        loads.server.record(2, state=State.DRAINING, mode="decode"),
    ]
    found = await loads.read()
    first, second = found["workers"]
    assert (first["worker_id"], first["state"], first["error"]) == (one, "ready", None)
    assert (first["role"], first["engine"], first["models"]) == ("worker", "sglang", ["m"])
    assert figures(first) == (7, 1, 0.375)
    assert [(rank["dp_rank"], *figures(rank)) for rank in first["ranks"]] == [
        ("0", 3, 1, 0.5),
        ("1", 4, 0, 0.25),
    ]
    assert (second["worker_id"], second["state"], second["mode"]) == (two, "draining", "decode")
    assert figures(second) == (1, 2, 0.375)
    total = found["total"]
    assert (total["workers"], total["answered"]) == (2, 2)
    assert figures(total) == (8, 3, 0.375)
    aged = [first, second, *first["ranks"], *second["ranks"], total]
    assert all(0 < one["age_seconds"] < 30 for one in aged)
    assert total["age_seconds"] == max(one["age_seconds"] for one in aged)
    # Only the load is requested.
    assert all("engine_running_requests" in query for _, query in loads.server.requested)


async def test_the_total_counts_a_request_of_two_workers_once(loads: Loads) -> None:
    """The decode worker has each request of the prefill worker, too."""
    for id_, lines in ((1, ranks((2, 3, 0.5))), (2, ranks((4, 5, 0.25)))):
        loads.server.pages[id_] = page((f"{id_:016x}", lines))
    loads.records += [loads.server.record(1, mode="prefill"), loads.server.record(2, mode="decode")]
    found = await loads.read()
    assert [figures(worker) for worker in found["workers"]] == [(2, 3, 0.5), (4, 5, 0.25)]
    assert figures(found["total"]) == (4, 5, 0.375)


async def test_a_worker_that_does_not_answer_is_named_with_the_reason(loads: Loads) -> None:
    loads.server.pages[1] = page((f"{1:016x}", ranks((3, 0, 0.5))))
    loads.server.pages[2] = b"half a li"
    loads.records += [
        loads.server.record(1),
        loads.server.record(2, state=State.UNRESPONSIVE),
        loads.server.record(3, system_url=None, state=State.STARTING),
    ]
    found = await loads.read()
    _, broken, without_page = found["workers"]
    assert broken["worker_id"] == f"{2:016x}"
    assert broken["state"] == "unresponsive"
    assert broken["error"]["reason"] == "invalid"
    assert "line 1" in broken["error"]["message"]
    assert figures(broken) == (None, None, None)
    assert (broken["age_seconds"], broken["ranks"]) == (None, [])
    assert without_page["error"]["reason"] == "no_page"
    assert found["total"]["workers"] == 3
    assert found["total"]["answered"] == 1
    assert figures(found["total"]) == (3, 0, 0.5)


async def test_an_engine_that_has_no_load_yet_has_no_figures(loads: Loads) -> None:
    loads.server.pages[1] = page((f"{1:016x}", ""))
    loads.records.append(loads.server.record(1, state=State.STARTING))
    found = await loads.read()
    (starting,) = found["workers"]
    assert (starting["error"], starting["state"]) == (None, "starting")
    assert figures(starting) == (None, None, None)
    assert figures(found["total"]) == (None, None, None)


async def test_each_engine_of_an_exporter_has_its_load(loads: Loads) -> None:
    loads.server.pages[1] = page(("a" * 16, ranks((3, 1, 0.5))), ("b" * 16, ranks((4, 0, 0.25))))
    loads.records.append(loads.server.record(1, role=Role.EXPORTER, models=()))
    found = await loads.read()
    engines = {one["worker_id"]: one for one in found["workers"]}
    assert figures(engines["a" * 16]) == (3, 1, 0.5)
    assert figures(engines["b" * 16]) == (4, 0, 0.25)
    assert engines["a" * 16]["engine"] == "engine-0"
    assert engines["a" * 16]["models"] == ["m"]
    assert figures(found["total"]) == (7, 1, 0.375)


async def test_values_that_json_does_not_have_are_missing(loads: Loads) -> None:
    name = "dynamometer_engine_running_requests"
    loads.server.pages[1] = f"# TYPE {name} gauge\n{name} NaN\n".encode()
    loads.records.append(loads.server.record(1))
    (worker,) = (await loads.read())["workers"]
    assert figures(worker) == (None, None, None)


async def test_a_sum_that_is_too_large_for_a_number_is_missing(loads: Loads) -> None:
    for id_ in (1, 2):
        loads.server.pages[id_] = page((f"{id_:016x}", ranks((1e308, 1, 1e308))))
        loads.records.append(loads.server.record(id_))
    found = await loads.read()
    assert figures(found["workers"][0]) == (1e308, 1, 1e308)
    assert figures(found["total"]) == (None, 2, None)


async def test_the_load_that_a_page_shows_for_another_worker_is_omitted(loads: Loads) -> None:
    loads.server.pages[1] = page((f"{1:016x}", ranks((1, 0, 0.5))), (f"{2:016x}", ranks((9, 0, 1))))
    loads.server.pages[2] = page((f"{2:016x}", ranks((2, 0, 0.5))))
    loads.records += [loads.server.record(1), loads.server.record(2)]
    found = await loads.read()
    assert [(one["worker_id"], one["running"]) for one in found["workers"]] == [
        (f"{1:016x}", 1),
        (f"{2:016x}", 2),
    ]
    assert found["total"]["running"] == 3


async def test_an_empty_fleet_has_an_empty_total(loads: Loads) -> None:
    found = await loads.read()
    assert found["workers"] == []
    assert figures(found["total"]) == (None, None, None)
