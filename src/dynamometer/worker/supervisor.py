"""The supervisor of an engine: start it, wait until it is ready, watch it, end it.

`runtime/lifecycle` has the states. A worker does not restart an engine that ended by itself: the
worker ends as well.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

from dynamometer import logs
from dynamometer.engines.interface import Launch, ModelCards, StartableEngine
from dynamometer.errors import EngineError
from dynamometer.process import tasks
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.children import ProcessIdentity, identities
from dynamometer.process.shared_memory import SharedFile, mapped_by, remove_unmapped
from dynamometer.runtime.lifecycle import EngineExit, ExitCause, Lifecycle, RestartPolicy
from dynamometer.runtime.record import Json, State
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.engine_log import EngineLog
from dynamometer.worker.process_tree import CHECK_SECONDS, EngineProcess
from dynamometer.worker.run_directory import RunDirectory

logger = logging.getLogger(__name__)
engine_log = logging.getLogger(logs.ENGINE_LOGGER)

# SGLang drains for some seconds after SIGTERM. All processes of an engine must end within 15 s, the
# limit of this project: these 8 s, then 5 s after SIGKILL (KILL_SECONDS), and 2 s if a check of the
# processes hangs (CHECK_SECONDS).
END_GRACE_SECONDS: Final = 8.0
_POLL_SECONDS: Final = 0.5
_PROGRESS_SECONDS: Final = 5.0
# An engine answers a request for facts about itself in milliseconds. If the first request fails,
# the worker becomes ready without the facts, and repeats the request later.
_INFO_SECONDS: Final = 1.0
_INFO_ATTEMPTS: Final = 5

OnChange = Callable[[], Awaitable[None]]


class Supervisor:
    """One engine, and the state of the worker that owns it.

    Attributes:
        lifecycle: the state of the engine.
        public_log: the last lines of the engine's log that `/health` may show.
        ready: set when the worker becomes ready.
        models: the models that the engine serves; empty until the engine answers.
        load_seconds: the time from the engine's start until its model answered.
        info: facts about the engine, filled when the engine is ready or some seconds later; empty
            until then. `runtime/record` describes the facts.
    """

    def __init__(
        self, engine: StartableEngine, launch: Launch, client: EngineClient, directory: RunDirectory
    ) -> None:
        self._engine = engine
        self._launch = launch
        self._client = client
        self._directory = directory
        # Threads hold the lock while they change the two sets and call `RunDirectory.record`.
        self._record_lock = threading.Lock()
        self._shared_files: frozenset[SharedFile] = frozenset()
        self._processes: frozenset[ProcessIdentity] = frozenset()
        self.public_log = EngineLog(engine.public_lines(), launch.api_key)
        self.lifecycle = Lifecycle(time.time(), RestartPolicy(limit=0))
        self.ready = asyncio.Event()
        self.models = ModelCards()
        self.load_seconds = 0.0
        self.info: Mapping[str, Json] = {}

    @asynccontextmanager
    async def running(
        self, on_change: OnChange, kill_now: Callable[[], bool]
    ) -> AsyncIterator[asyncio.Task[EngineError]]:
        """Run the engine while the context is open, and end all of its processes afterwards.

        Args:
            on_change: called and awaited after the engine became ready, and after `info` changed.
            kill_now: returns True when the engine must be killed without waiting.

        Yields:
            A task that finishes, with the error as its result, when the engine ends by itself or
            when this worker cannot watch the engine any longer.

        Raises:
            EngineError: The engine cannot be started.
        """
        environment = {**self._launch.environment, "TMPDIR": str(self._directory.temporary)}
        process = await EngineProcess.start(
            self._launch.command, environment, owner=self._directory.path.name
        )
        self.lifecycle.note_started(time.time())
        logger.info("engine started, process %d", process.pid)
        watching = asyncio.create_task(self._watch(process, on_change), name="engine")
        try:
            yield watching
        finally:
            self.drain()
            await self._end_engine(process, kill_now)
            await tasks.end(watching)

    async def _end_engine(self, process: EngineProcess, kill_now: Callable[[], bool]) -> None:
        failed = self.state is State.FAILED
        if not failed:
            logger.info(
                "ending the engine, for up to %.0f s; Ctrl-C again kills it", END_GRACE_SECONDS
            )
        remaining = await process.end(
            grace=0 if failed else END_GRACE_SECONDS,
            kill_now=kill_now,
            check=lambda: self._record_processes(process),
        )
        if remaining:
            logger.error(
                "processes of the engine did not end and keep running: %s",
                ", ".join(map(str, remaining)),
            )
        else:
            logger.info("all processes of the engine have ended")
        removing: BlockingCalls[int] = BlockingCalls("shared memory", deadline=CHECK_SECONDS)
        with suppress(HangError):
            if removed := await removing.run(lambda: remove_unmapped(self._shared_files)):
                logger.debug("removed files of the engine from /dev/shm: %d", removed)

    @property
    def state(self) -> State:
        """The state of the worker."""
        return self.lifecycle.state

    def drain(self) -> None:
        """Enter the state `draining`, unless the engine has failed; accept no further requests."""
        if self.state is not State.DRAINING:
            self.lifecycle.drain(time.time(), "the worker is ending")

    def _fail(self, code: int | None, description: str) -> None:
        if self.state is not State.DRAINING:
            cause = ExitCause.SIGNAL if code is not None and code < 0 else ExitCause.EXIT
            ended = EngineExit(code=code, cause=cause, description=description)
            self.lifecycle.note_exit(time.time(), ended)

    async def _watch(self, process: EngineProcess, on_change: OnChange) -> EngineError:
        """Watch the engine until it ends, and return the reason as an error.

        A fault of this worker ends the engine as well. Otherwise the worker would stay `starting`
        forever, or the pipe of the log, which the worker no longer reads, would block the engine.
        """
        exit_code: int | None = None
        try:
            async with asyncio.TaskGroup() as group:
                log = group.create_task(process.read_log(self._log_line), name="engine log")
                start = group.create_task(
                    self._wait_until_ready(process, on_change), name="engine start"
                )
                exit_code = await process.wait()
                self._fail(exit_code, f"the engine ended with exit code {exit_code}")
                start.cancel()
                # The last lines are still in the pipe, which an orphan may keep open.
                await asyncio.wait({log}, timeout=1)
                log.cancel()
        except ExceptionGroup as faults:
            self._fail(exit_code, "the engine cannot be watched any longer")
            logger.exception("the engine cannot be watched any longer")
            if exit_code is None:
                fault = faults.exceptions[0]
                return EngineError(f"a fault of this worker ended its engine: {fault!r}")
        reason = self._engine.describe_exit(process.log, exit_code, self._launch)
        disk_full_hint = "; is a file system that the engine maps, such as /dev/shm, full?"
        return EngineError(
            f"the engine ended: {reason}{disk_full_hint if exit_code == -signal.SIGBUS else ''}"
        )

    async def _wait_until_ready(self, process: EngineProcess, on_change: OnChange) -> None:
        started = time.monotonic()
        models = await self._wait_for_models(process, started)
        if models is None:
            return
        process.log.clear()  # if the engine ends later, the reason is not in these lines
        self.models = models
        self.load_seconds = time.monotonic() - started
        self.info = await self._client.fetch_info(models, timeout=_INFO_SECONDS)
        if self.state is not State.STARTING:
            return
        self.lifecycle.note_ready(time.time())
        self.ready.set()
        logger.info("ready after %.1f s: serving %s", self.load_seconds, ", ".join(models.names))
        await on_change()
        try:
            await self._fetch_missing_info(on_change)
        except Exception:
            # The worker needs no facts to serve requests.
            logger.exception("cannot request facts about the engine")

    async def _wait_for_models(self, process: EngineProcess, started: float) -> ModelCards | None:
        """Return the models once the engine answers; None if the worker ends before that."""
        logged = started
        checking: BlockingCalls[None] = BlockingCalls("processes", deadline=CHECK_SECONDS)
        while True:
            models = ModelCards()
            if await self._client.check_health():
                models = await self._client.fetch_models()
            if self.state is not State.STARTING:
                return None
            with suppress(HangError):
                await checking.run(lambda: self._record_processes(process))
            if models.cards:
                return models
            if time.monotonic() - logged >= _PROGRESS_SECONDS:
                logged = time.monotonic()
                logger.info(
                    "waiting for the engine's model to answer, %.0f s so far%s",
                    logged - started,
                    self._last_line(process),
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _fetch_missing_info(self, on_change: OnChange) -> None:
        """Request the facts about the engine again if the first request failed."""
        for attempt in range(_INFO_ATTEMPTS):
            if self.info:
                return
            await asyncio.sleep(2**attempt)
            if info := await self._client.fetch_info(self.models):
                self.info = info
                await on_change()
        if not self.info:
            logger.info(
                "the version and limits of the engine are unknown: no usable answer from %s",
                self._engine.info_path,
            )

    def _last_line(self, process: EngineProcess) -> str:
        line = self._engine.describe_progress(process.log)
        return f"; its last line: {line[:100]}" if line else ""

    def _record_processes(self, process: EngineProcess) -> None:
        """Record the engine's processes, and the shared memory that they map.

        This call blocks; run it in a thread.
        """
        members = process.members()
        # The processes are recorded first, because `mapped_by` hangs if one of them is stuck.
        with self._record_lock:
            self._processes |= identities(members)
            self._directory.record(self._processes, self._shared_files)
        shared_files = mapped_by(member.pid for member in members)
        with self._record_lock:
            self._shared_files |= shared_files
            self._directory.record(self._processes, self._shared_files)

    def _log_line(self, line: str) -> None:
        if self._engine.probes is not None and self._engine.probes.log_line.search(line):
            return
        self.public_log.add(line)
        key = self._launch.api_key
        engine_log.info("%s", line.replace(key, "***") if key else line)
