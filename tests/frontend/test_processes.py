"""A frontend of several real processes, in front of a simulated worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.errors import AddressError
from dynamometer.http import addresses
from dynamometer.process import private_directories
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.record import Record, Role, State
from processes import PYTHON, Process, refusing_port, running

CHAT = "/v1/chat/completions"
Series = tuple[str, tuple[tuple[str, str], ...]]
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
EVENTS = (
    {"choices": [{"delta": {"content": "a"}}]},
    {"choices": [{"delta": {"content": "b"}}]},
    {"choices": [], "usage": USAGE},
)


class SimulatedWorker:
    """A worker whose streams wait before their last event while `open_streams` is cleared."""

    def __init__(self) -> None:
        self.open_streams = asyncio.Event()
        self.open_streams.set()
        self.waiting = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in EVENTS:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.waiting += 1
        await self.open_streams.wait()
        self.waiting -= 1
        await response.write(b"data: [DONE]\n\n")
        return response


@dataclass
class Group:
    """A frontend of several processes, and its client."""

    process: Process
    url: str
    session: aiohttp.ClientSession

    @property
    def members(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    async def chat(self) -> bool:
        """Return whether a stream arrives complete."""
        body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with self.session.post(self.url + CHAT, json=body) as answer:
                return (await answer.read()).endswith(b"data: [DONE]\n\n")
        except aiohttp.ClientError:
            return False

    async def chats(self, number: int) -> list[bool]:
        return await asyncio.gather(*(self.chat() for _ in range(number)))

    async def json(self, path: str) -> dict[str, object]:
        async with self.session.get(self.url + path) as answer:
            content = await answer.json()
            assert isinstance(content, dict)
            return content

    async def page(self, **headers: str) -> str:
        async with self.session.get(f"{self.url}/metrics", headers=headers) as answer:
            assert answer.status == 200
            return await answer.text()

    async def series(self) -> dict[Series, float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in parse(await self.page())
            for sample in family.samples
        }

    async def sum(self, name: str, **labels: str) -> float:
        return sum(
            value
            for (name_, labels_), value in (await self.series()).items()
            if name_ == f"dynamo_frontend_{name}" and labels.items() <= dict(labels_).items()
        )

    async def finished(self) -> float:
        return await self.sum("requests_total", model="m", status="success")

    async def serving(self, number: int) -> bool:
        try:
            processes = (await self.json("/health"))["processes"]
        except aiohttp.ClientError:  # a connection in the queue of a killed process is reset
            return False
        assert isinstance(processes, dict)
        return bool(processes["serving"] == number)


@dataclass
class Place:
    """A directory with one worker in discovery, where frontends start."""

    directory: Path
    worker: SimulatedWorker
    record: Record
    discovery: FileDiscovery
    session: aiohttp.ClientSession
    _count: list[int] = field(default_factory=list)

    def command(self, *flags: str) -> list[str]:
        directory = ("--discovery-directory", str(self.directory / "discovery"))
        return [PYTHON, "-m", "dynamometer.cli", "frontend", *directory, *flags]

    def running(self, *flags: str) -> contextlib.AbstractContextManager[Process]:
        self._count.append(1)
        return running(self.command(*flags), self.directory / f"log-{len(self._count)}", {})

    @asynccontextmanager
    async def group(self, processes: int, *flags: str) -> AsyncIterator[Group]:
        with self.running("--http-port", "0", "--processes", str(processes), *flags) as process:
            pattern = r"OpenAI-compatible at (http://\S+)/v1"
            match = await asyncio.to_thread(process.wait_for, pattern, within=60)
            yield Group(process, match[1], self.session)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    worker = SimulatedWorker()
    app = web.Application()
    app.router.add_post("/{path:.*}", worker.answer)
    discovery = FileDiscovery(tmp_path / "discovery")
    # Each request has a connection of its own, so that each may reach another process.
    connector = aiohttp.TCPConnector(force_close=True, limit=50)
    async with TestServer(app) as server, aiohttp.ClientSession(connector=connector) as session:
        record = Record(
            role=Role.WORKER,
            id=2**63 + 7,
            namespace="dynamo",
            component="backend",
            endpoint="generate",
            models=("m",),
            engine_info={"context_length": 2048, "max_sequences": 8},
            request_url=f"http://127.0.0.1:{server.port}",
            state=State.READY,
        )
        yield Place(tmp_path, worker, record, discovery, session)


async def eventually(condition: Callable[[], object], *, within: float = 30.0) -> None:
    """Wait for a condition; a coroutine function is awaited."""
    async with asyncio.timeout(within):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.02)


def directories() -> set[str]:
    """Return the names of the frontends' directories on tmpfs."""
    base = private_directories.create_memory()
    return {path.name for path in base.glob("frontend-*")}


async def test_the_page_is_that_of_one_process(place: Place) -> None:
    async with place.discovery.register(place.record):
        pages = []
        for processes in (1, 3):
            async with place.group(processes) as group:
                assert await group.chats(12) == [True] * 12
                await eventually(lambda: chats_counted(group, 12))
                pages.append(await group.page())
    one, several = ({family.name: family for family in parse(page)} for page in pages)
    assert one.keys() == several.keys()
    for name, family in one.items():
        other = several[name]
        assert (family.type, family.documentation) == (other.type, other.documentation)
        values = [
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for sample in shown.samples
                if "uptime" not in sample.name
            }
            for shown in (family, other)
        ]
        assert values[0].keys() == values[1].keys()
        measured = ("process_", "_seconds", "event_loop")
        if not any(part in name for part in measured):
            assert values[0] == values[1], name
        counts = [{key: v for key, v in one.items() if key[0].endswith("_count")} for one in values]
        if "event_loop" not in name:
            assert counts[0] == counts[1], name


async def chats_counted(group: Group, number: int) -> bool:
    return await group.finished() == number


async def test_counts_are_exact_when_a_process_is_killed_under_load(place: Place) -> None:
    async with place.discovery.register(place.record), place.group(2) as group:
        assert await group.chats(60) == [True] * 60
        await eventually(lambda: chats_counted(group, 60))
        place.worker.open_streams.clear()
        streams = asyncio.gather(*(group.chat() for _ in range(20)))
        await eventually(lambda: place.worker.waiting == 20)
        assert await group.sum("active_requests", model="m") == 20
        victim = group.members[0]
        victim.kill()
        await eventually(lambda: restarted(group))
        place.worker.open_streams.set()
        complete = sum(await streams)
        assert 0 < complete < 20
        await eventually(lambda: chats_counted(group, 60 + complete))
        assert await group.sum("requests_started_total", model="m") == 80
        assert await group.sum("active_requests") == 0
        assert await group.sum("stage_requests") == 0
        assert await group.chats(40) == [True] * 40
        await eventually(lambda: chats_counted(group, 100 + complete))
        assert await group.sum("output_tokens_total") == 2 * (100 + complete)
        gaps = await group.sum("inter_token_latency_seconds_count")
        assert gaps == 100 + complete  # two events with content a stream
        assert victim.pid not in {member.pid for member in group.members}


async def restarted(group: Group) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        processes = (await group.json("/health"))["processes"]
        return processes == {"expected": 2, "serving": 2, "restarts": 1}
    return False


async def test_a_process_that_dies_again_and_again_is_restarted_after_growing_pauses(
    place: Place,
) -> None:
    async with place.group(2) as group:
        for pause in ("now", "in 0.5 s", "in 1 s"):
            victim = next(member for member in group.members if is_first(member))
            victim.kill()
            pattern = rf"process 1 .*{victim.pid}.* by SIGKILL: restarting {pause}\n"
            await asyncio.to_thread(group.process.wait_for, pattern, within=10)
            await eventually(lambda: any(map(is_first, group.members)))
            await eventually(lambda: group.serving(2))
        await eventually(lambda: restarts_shown(group, 3))


async def restarts_shown(group: Group, number: int) -> bool:
    return (await group.series())["dynamometer_frontend_process_restarts_total", ()] == number


def is_first(member: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return member.environ().get("DYNAMOMETER_FRONTEND_MEMBER", "").startswith("1 ")
    return False


async def test_series_of_workers_that_left_disappear(place: Place) -> None:
    async with place.group(2) as group:
        async with place.discovery.register(place.record):
            await eventually(lambda: model_workers(group, 1))
            listed = (await group.json("/v1/models"))["data"]
            assert isinstance(listed, list)
            assert [card["id"] for card in listed] == ["m"]
            await group.chats(10)
            shown = {name for name, _ in await group.series()}
            assert "dynamo_frontend_worker_last_input_sequence_tokens" in shown
            assert "dynamo_frontend_model_context_length" in shown
        await eventually(lambda: model_workers(group, 0))
        shown = {name for name, _ in await group.series()}
        assert "dynamo_frontend_worker_last_input_sequence_tokens" not in shown
        assert "dynamo_frontend_model_context_length" not in shown
        async with place.discovery.register(place.record):
            await eventually(lambda: model_workers(group, 1))
            shown = {name for name, _ in await group.series()}
            assert "dynamo_frontend_model_context_length" in shown


async def model_workers(group: Group, number: int) -> bool:
    name = "dynamo_frontend_model_workers"
    found = {value for (name_, _), value in (await group.series()).items() if name_ == name}
    return found == {number}


async def test_discovery_has_one_record_of_all_processes(place: Place) -> None:
    async with place.group(3) as group:
        (record,) = await place.discovery.records()
        assert (record.role, record.request_url, record.system_url) == (
            Role.FRONTEND,
            group.url,
            group.url,
        )
        uptime = [
            key for key in await group.series() if key[0] == "dynamo_component_uptime_seconds"
        ]
        assert uptime == [(uptime[0][0], (("worker_id", f"{record.id:016x}"),))]


async def test_a_scraper_gets_the_form_and_the_families_that_it_requests(place: Place) -> None:
    async with place.group(2) as group:
        openmetrics = await group.page(Accept="application/openmetrics-text")
        assert openmetrics.endswith("# EOF\n")
        url = f"{group.url}/metrics?name[]=dynamo_frontend_active_requests"
        async with group.session.get(url) as answer:
            families = {family.name for family in parse(await answer.text())}
        assert families == {"dynamo_frontend_active_requests"}


@contextmanager
def listening(*options: int) -> Iterator[int]:
    """Listen on a free port, with options of the socket."""
    with socket.socket() as listener:
        for option in options:
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def test_too_few_open_files_for_all_processes_are_an_error(place: Place) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with place.running("--http-port", "0", "--processes", "16") as process:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (40, limits[1]))
        assert await asyncio.to_thread(process.wait, within=30) == 1
        assert re.fullmatch(
            r"error: process \d+ of the frontend cannot start \(Too many open files: .*\)\n",
            process.log,
        )


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)])
async def test_a_port_of_another_program_is_an_error(
    place: Place, options: tuple[int, ...]
) -> None:
    with listening(*options) as port:
        await check_refused(place, port, processes=2)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 2)])
async def test_two_frontends_cannot_share_a_port(place: Place, first: int, second: int) -> None:
    async with place.group(first) as group:
        await check_refused(place, int(group.url.rpartition(":")[2]), processes=second)
        assert "processes" in await group.json("/health") or first == 1


async def check_refused(place: Place, port: int, *, processes: int) -> None:
    flags = ("--http-port", str(port), "--processes", str(processes))
    with place.running(*flags) as process:
        assert await asyncio.to_thread(process.wait, within=30) == 1
        assert f"port {port} on 127.0.0.1 is already in use" in process.log
        assert process.log.count("\n") == 1


async def test_the_port_stays_taken_while_all_processes_restart(place: Place) -> None:
    async with place.group(2) as group:
        port = int(group.url.rpartition(":")[2])
        for member in group.members:
            member.suspend()  # a process that is restarted does not accept yet either
        for member in group.members:
            member.kill()
        with pytest.raises(AddressError, match="in use"):
            addresses.listen("127.0.0.1", port, setting="")
        await eventually(lambda: group.serving(2))


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_frontend_that_ends_serves_the_drain_delay_and_answers_until_the_end(
    place: Place, processes: int
) -> None:
    flags = ("--drain-delay", "3", "--drain-timeout", "30")
    async with place.discovery.register(place.record), place.group(processes, *flags) as group:
        await eventually(lambda: model_workers(group, 1))
        place.worker.open_streams.clear()
        early = asyncio.create_task(group.chat())
        await eventually(lambda: place.worker.waiting == 1)
        group.process.signal(signal.SIGTERM)
        await eventually(lambda: status_is(group, "/health", 503), within=2)
        assert (await group.json("/health"))["status"] == "draining"
        await eventually(lambda: frontend_state(place, State.DRAINING), within=2)
        late = asyncio.create_task(group.chat())  # with a connection of its own
        await eventually(lambda: place.worker.waiting == 2)
        await eventually(lambda: status_is(group, CHAT, 503, {"model": "m"}), within=10)
        for path, status in (("/live", 200), ("/metrics", 200), ("/health", 503)):
            for _ in range(20):  # each on a new connection, which any process may accept
                assert await status_is(group, path, status)
        assert not early.done()
        place.worker.open_streams.set()
        assert list(await asyncio.gather(early, late)) == [True, True]
        assert await asyncio.to_thread(group.process.wait, within=10) == 0


async def status_is(group: Group, path: str, status: int, body: object = None) -> bool:
    method = "GET" if body is None else "POST"
    try:
        async with asyncio.timeout(0.5):
            async with group.session.request(method, group.url + path, json=body) as answer:
                return answer.status == status
    except TimeoutError:  # the request was accepted, and waits for the worker
        return False


async def frontend_state(place: Place, state: State) -> bool:
    records = await place.discovery.records()
    return [record.state for record in records if record.role is Role.FRONTEND] == [state]


async def test_a_process_that_is_ended_alone_finishes_its_streams_and_is_restarted(
    place: Place,
) -> None:
    async with place.discovery.register(place.record), place.group(2) as group:
        await eventually(lambda: model_workers(group, 1))
        place.worker.open_streams.clear()
        streams = asyncio.gather(*(group.chat() for _ in range(20)))
        await eventually(lambda: place.worker.waiting == 20)
        group.members[0].terminate()
        await asyncio.to_thread(group.process.wait_for, "requests in flight", within=10)
        place.worker.open_streams.set()
        assert await streams == [True] * 20
        await eventually(lambda: restarted(group))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_all_processes_and_leaves_nothing(
    place: Place, number: signal.Signals
) -> None:
    before = directories()
    async with place.discovery.register(place.record), place.group(2) as group:
        created = directories() - before
        assert created
        members = group.members
        place.worker.open_streams.clear()
        # The kernel chooses a process for each: both get some.
        streams = asyncio.gather(*(group.chat() for _ in range(24)))
        await eventually(lambda: place.worker.waiting == 24)
        group.process.signal(number)
        if number == signal.SIGTERM:  # service managers send it to all processes of a service
            for process in members:
                process.terminate()
        for member in (1, 2):
            pattern = rf"\[frontend {member}\] requests in flight"
            await asyncio.to_thread(group.process.wait_for, pattern, within=10)
        place.worker.open_streams.set()
        assert await streams == [True] * 24
        assert await asyncio.to_thread(group.process.wait, within=10) == 0
        assert not any(member.is_running() for member in members)
        assert not created & directories()
        assert [record.role for record in await place.discovery.records()] == [Role.WORKER]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("flags", [(), ("--drain-delay", "60")])
async def test_a_second_signal_ends_all_processes_at_once(
    place: Place, processes: int, flags: tuple[str, ...]
) -> None:
    async with place.discovery.register(place.record), place.group(processes, *flags) as group:
        await eventually(lambda: model_workers(group, 1))
        members = group.members
        place.worker.open_streams.clear()
        streams = asyncio.gather(*(group.chat() for _ in range(8)))
        await eventually(lambda: place.worker.waiting == 8)
        group.process.signal(signal.SIGINT)
        await eventually(lambda: status_is(group, "/health", 503))
        group.process.signal(signal.SIGINT)
        assert await asyncio.to_thread(group.process.wait, within=3) == 0
        assert not any(await streams)
        assert not any(member.is_running() for member in members)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 1), (1, 2), (1, 1)])
async def test_a_killed_frontend_leaves_no_process_and_the_next_start_clears(
    place: Place, first: int, second: int
) -> None:
    before = directories()
    async with place.group(first) as group:
        created = directories() - before
        members = group.members
        group.process.signal(signal.SIGKILL)
        await asyncio.to_thread(group.process.wait, within=5)
        await eventually(lambda: not any(alive(member) for member in members))
        assert not await place.discovery.records()
    port = group.url.rpartition(":")[2]
    async with place.group(second, "--http-port", port) as group:
        assert len(await place.discovery.records()) == 1
        assert (await group.json("/health"))["status"] == "healthy"
        assert not created & directories()


async def test_all_processes_show_the_workers_and_are_ready_with_them(place: Place) -> None:
    async def shows(group: Group, state: str) -> bool:
        workers = {
            dict(labels)["state"]: value
            for (name, labels), value in (await group.series()).items()
            if name == "dynamometer_frontend_workers"
        }
        return workers.get(state) == 1 == sum(workers.values())

    async def statuses(group: Group) -> set[int]:
        found = set()
        for _ in range(8):  # each on a new connection
            async with group.session.get(f"{group.url}/v1/health/ready?model=m") as answer:
                assert (await answer.json())["processes"] == await processes(group)
                found.add(answer.status)
        return found

    async def processes(group: Group) -> object:
        return (await group.json("/health"))["processes"]

    async with place.group(2) as group:
        assert await statuses(group) == {503}
        starting = replace(place.record, state=State.STARTING)
        async with place.discovery.register(starting) as registration:
            await eventually(lambda: shows(group, "starting"))
            assert await statuses(group) == {503}
            await registration.update(place.record)
            await eventually(lambda: shows(group, "ready"))
            async with asyncio.timeout(5):
                while await statuses(group) != {200}:
                    await asyncio.sleep(0.05)
            assert await group.chats(6) == [True] * 6
            retries = {
                (dict(labels)["model"], dict(labels)["reason"]): value
                for (name, labels), value in (await group.series()).items()
                if name == "dynamometer_frontend_retries_total"
            }
            reasons = ("budget_exhausted", "cannot_connect", "worker_not_ready")
            assert retries == {("m", reason): 0 for reason in reasons}


async def test_retries_are_summed_over_processes(place: Place) -> None:
    refusing = replace(place.record, id=7, request_url=f"http://127.0.0.1:{refusing_port()}")
    async with (
        place.discovery.register(place.record),
        place.discovery.register(refusing),
        place.group(2) as group,
    ):
        assert await group.chats(12) == [True] * 12
        retried = sum(
            value
            for (name, labels), value in (await group.series()).items()
            if name == "dynamometer_frontend_retries_total"
            and dict(labels)["reason"] == "cannot_connect"
        )
        # Each process takes turns, and avoids a worker that refused for a second.
        assert 2 <= retried <= 8


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def test_one_process_has_neither_a_supervisor_nor_files(place: Place) -> None:
    before = directories()
    async with place.group(1) as group:
        assert group.members == []
        assert directories() <= before
        assert "processes" not in await group.json("/health")


async def test_files_in_the_current_directory_are_not_imported(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The script `dyno` does not import them either.
    current = place.directory / "current"
    current.mkdir()
    (current / "queue.py").write_text("raise SystemExit('a file of the current directory')\n")
    code = "import sys; from dynamometer.cli import main; main()"
    flags = ("frontend", "--http-port", "0", "--processes", "2")
    directory = ("--discovery-directory", str(place.directory / "discovery"))
    monkeypatch.chdir(current)
    command = [PYTHON, "-P", "-c", code, *flags, *directory]
    with running(command, place.directory / "log", {}) as process:
        await asyncio.to_thread(process.wait_for, "OpenAI-compatible at", within=30)


@pytest.mark.parametrize(("available", "shown"), [(3, ", 3 processes\n"), (1, "/metrics\n")])
def test_auto_starts_a_process_for_each_available_cpu(
    tmp_path: Path, available: int, shown: str
) -> None:
    code = (
        f"from dynamometer.process import cpus; cpus.available = lambda: {available}\n"
        "from dynamometer.cli import run; run('frontend')"
    )
    directory = ("--discovery-directory", str(tmp_path / "discovery"))
    command = [PYTHON, "-c", code, "--http-port", "0", *directory]
    with running(command, tmp_path / "log", {"DYN_FRONTEND_PROCESSES": "auto"}) as process:
        process.wait_for(f"OpenAI-compatible at .*{shown}", within=60)


@pytest.mark.parametrize("value", ["0", "-1", "many", "513"])
def test_a_number_that_is_not_valid_is_refused(tmp_path: Path, value: str) -> None:
    command = [PYTHON, "-m", "dynamometer.cli", "frontend", f"--processes={value}"]
    with running(command, tmp_path / "log", {}) as process:
        assert process.wait(within=30) == 2
        assert "must be a whole number from 1 to 512, or auto" in process.log
