"""Pages and states between a supervisor and a process, over a pair of sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from dynamometer.exposition.filters import Selection
from dynamometer.frontend.channel import ProcessEnd, SupervisorEnd
from dynamometer.metrics.refresh import PageRequest
from dynamometer.process import tasks
from waiting import run_ready_tasks, until


@dataclass
class Ends:
    """Both ends of a channel, and what the supervisor received."""

    supervisor: SupervisorEnd
    process: ProcessEnd
    serving: asyncio.Task[None]
    requests: list[PageRequest] = field(default_factory=list)
    ready: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    async def page(self, request: PageRequest) -> bytes:
        self.requests.append(request)
        if "fails" in request.selection.names:
            raise ValueError
        await self.held.wait()
        return b"page %d" % len(self.requests)

    def note_ready(self) -> None:
        self.ready += 1


@asynccontextmanager
async def connected() -> AsyncIterator[Ends]:
    own, others = socket.socketpair()
    supervisor = SupervisorEnd(own)
    async with ProcessEnd.connected(others) as process:
        found: list[Ends] = []
        serving = asyncio.create_task(
            supervisor.serve(
                {"serving": 0},
                ready=lambda: found[0].note_ready(),
                page=lambda request: found[0].page(request),
            )
        )
        ends = Ends(supervisor, process, serving)
        found.append(ends)
        ends.held.set()
        yield ends
        await tasks.end(serving)


async def test_the_state_arrives_at_the_start_and_at_each_change() -> None:
    async with connected() as ends:
        await until(lambda: ends.process.state == {"serving": 0})
        ends.supervisor.send_state({"serving": 1})
        await until(lambda: ends.process.state == {"serving": 1})


async def test_a_process_reports_that_it_accepts_requests() -> None:
    async with connected() as ends:
        ends.process.send_ready()
        await until(lambda: ends.ready == 1)


async def test_pages_arrive_in_the_order_of_their_requests() -> None:
    one = PageRequest(Selection.of(names=["a", "b"]), openmetrics=True)
    other = PageRequest(gzip=True)
    async with connected() as ends:
        ends.held.clear()
        first, second = (asyncio.wrap_future(ends.process.submit(r)) for r in (one, other))
        await run_ready_tasks()
        ends.supervisor.send_state({"serving": 2})  # between a request and its page
        await until(lambda: ends.process.state == {"serving": 2})
        ends.held.set()
        assert [await first, await second] == [b"page 1", b"page 2"]
        assert ends.requests == [one, other]
        assert await asyncio.to_thread(ends.process.answer, one) == b"page 3"


async def test_a_scraper_that_leaves_shifts_no_page() -> None:
    async with connected() as ends:
        ends.held.clear()
        left = asyncio.wrap_future(ends.process.submit(PageRequest()))
        await until(lambda: len(ends.requests) == 1)
        left.cancel()
        following = asyncio.wrap_future(ends.process.submit(PageRequest()))
        ends.held.set()
        assert await following == b"page 2"


async def test_a_page_that_fails_is_an_error_and_the_next_one_is_served() -> None:
    async with connected() as ends:
        failing = PageRequest(Selection.of(names=["fails"]))
        with pytest.raises(RuntimeError, match="cannot render the page"):
            await asyncio.wrap_future(ends.process.submit(failing))
        assert await asyncio.wrap_future(ends.process.submit(PageRequest())) == b"page 2"


async def test_failed_pages_do_not_share_an_exception() -> None:
    """The traceback of a shared exception would grow with each failed page."""
    errors = []
    async with connected() as ends:
        for _ in range(2):
            failing = PageRequest(Selection.of(names=["fails"]))
            with pytest.raises(RuntimeError) as raised:
                await asyncio.wrap_future(ends.process.submit(failing))
            errors.append(raised.value)
    assert errors[0] is not errors[1]


async def test_the_end_of_the_supervisor_fails_all_requests() -> None:
    async with connected() as ends:
        ends.held.clear()
        waiting = asyncio.wrap_future(ends.process.submit(PageRequest()))
        await until(lambda: ends.requests)
        await tasks.end(ends.serving)
        with pytest.raises(ConnectionError, match="supervisor has ended"):
            await waiting
        with pytest.raises(ConnectionError, match="supervisor has ended"):
            await asyncio.wrap_future(ends.process.submit(PageRequest()))
