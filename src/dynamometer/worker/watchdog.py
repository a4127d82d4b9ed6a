"""Ask a ready engine that is quiet, and report whether it answers.

A tick each second takes the evidence of `progress`. While a part of the engine is asked, the worker
requests the beats of the ranks at each tick, and keeps one canary in flight. An engine that answers
requests is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from dynamometer.process import tasks
from dynamometer.runtime.lifecycle import Lifecycle
from dynamometer.settings import HealthCheckSettings
from dynamometer.worker.engine_client import CanaryResult, EngineClient, UnknownRouteError
from dynamometer.worker.incidents import WATCHED, Incidents
from dynamometer.worker.progress import TICK_SECONDS, Progress


class Watchdog:
    """Watches the engine of one worker, across restarts of the engine."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        incidents: Incidents,
        client: EngineClient,
        settings: HealthCheckSettings,
        *,
        hang_seconds: float,
        take_progress: Callable[[], bool],
        on_progress: Callable[[int], None],
    ) -> None:
        """Store the arguments; `run` starts to watch.

        Args:
            lifecycle: the state of the engine.
            incidents: changes the state of the engine.
            client: sends the questions.
            settings: the times of the questions.
            hang_seconds: see `Progress`.
            take_progress: returns whether bytes of answers came since its last call.
            on_progress: called with the number of each data-parallel rank that has shown progress,
                at most once a second.
        """
        self._lifecycle = lifecycle
        self._incidents = incidents
        self._client = client
        self._settings = settings
        self._hang_seconds = hang_seconds
        self._take_progress = take_progress
        self._on_progress = on_progress
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watch each engine process while it is ready or unresponsive, until cancelled."""
        try:
            while self._settings.enabled:
                await asyncio.sleep(TICK_SECONDS)
                if self._lifecycle.engine_state in WATCHED:
                    await self._watch(self._lifecycle.started_at)
                    await self._end_tasks()
        finally:
            await self._end_tasks()

    async def _watch(self, started_at: float | None) -> None:
        """Watch the engine that started at this Unix time, until it ends."""
        progress = Progress(
            wait_seconds=self._settings.wait_seconds, hang_seconds=self._hang_seconds
        )
        questions = _Questions(progress, self._client, self._settings)
        clock = asyncio.get_running_loop().time
        before = clock()
        while True:
            if self._take_progress():
                progress.note_answer()
            now = clock()
            progress.tick(now - before)
            before = now
            if progress.asking or not questions.ranks_requested:
                self._start("beats", questions.request_beats)
            if progress.output_asked and questions.ranks_requested:
                self._start("canary", questions.send_canary)
            for rank in progress.take_proven_ranks():
                self._on_progress(rank)
            await self._incidents.report(progress.silent_reason)
            await asyncio.sleep(TICK_SECONDS)
            lifecycle = self._lifecycle
            if lifecycle.engine_state not in WATCHED or lifecycle.started_at != started_at:
                return

    def _start(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Start `work` in a task, unless the previous task of this name still runs."""
        running = self._running.get(name)
        if running is None or running.done():
            if running is not None:
                running.result()
            self._running[name] = asyncio.create_task(work(), name=name)

    async def _end_tasks(self) -> None:
        await self._incidents.close()
        for task in self._running.values():
            await tasks.end(task)
        self._running.clear()


class _Questions:
    """The questions to one engine process.

    Attributes:
        ranks_requested: the server has answered a request for the beats of its ranks, or has no
            route for it.
    """

    def __init__(
        self, progress: Progress, client: EngineClient, settings: HealthCheckSettings
    ) -> None:
        self._progress = progress
        self._client = client
        # A healthy server may be busy for some time before it answers.
        self._request_seconds = max(settings.request_seconds, TICK_SECONDS)
        self._beats_known = self._canary_known = client.has_probes
        self.ranks_requested = not client.has_probes

    async def request_beats(self) -> None:
        """Request the beats of the ranks, and record them."""
        if not self._beats_known:
            return
        try:
            beats = await self._client.fetch_beats(timeout=self._request_seconds)
        except UnknownRouteError:
            beats = ()
            self._beats_known = False
        if beats is not None:
            self._progress.note_beats(beats)
            self.ranks_requested = True

    async def send_canary(self) -> None:
        """Send a canary, wait for the answer, and record it.

        A canary waits as long as the engine may be silent: a canary that is given up early would
        make the engine log the end of the connection.
        """
        timeout = self._progress.hang_seconds
        rank = self._progress.choose_canary_rank()
        if not self._canary_known or rank is None:
            if await self._client.check_health(timeout=timeout):
                self._progress.note_canary(None)
            return
        ranks = self._progress.rank_count
        result = await self._client.send_canary(rank, ranks=ranks, timeout=timeout)
        if result is CanaryResult.ANSWERED:
            self._progress.note_canary(rank)
        elif result is CanaryResult.REFUSED:
            self._progress.note_refused_canary()
        elif result is CanaryResult.NOT_UNDERSTOOD:
            self._canary_known = False
