"""The engine's life: started, waited for, watched, ended.

    starting ──▶ ready ──▶ draining ──▶ (ended)
        └───────────┴────▶ failed: the engine ended by itself

Restarting it is a later matter; until then a worker ends with its engine.
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
from dynamometer.process.children import ProcessMark, marks
from dynamometer.process.shared_memory import SharedFile, held_by, remove_unheld
from dynamometer.runtime.record import Json, State
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.process_tree import LOOK_SECONDS, EngineProcess
from dynamometer.worker.run_directory import RunDirectory

logger = logging.getLogger(__name__)
engine_log = logging.getLogger(logs.ENGINE_LOGGER)

# SGLang drains for some seconds after SIGTERM; all must be gone within 15 s.
END_GRACE_SECONDS: Final = 8.0
_ASK_SECONDS: Final = 0.5
_SAY_SECONDS: Final = 5.0
# What the engine says of itself is there in milliseconds; where it is not, it is asked again
# once the worker is ready.
_INFO_SECONDS: Final = 1.0
_INFO_ATTEMPTS: Final = 5

Changed = Callable[[], Awaitable[None]]


class Supervisor:
    """One engine, and the state that the worker is in because of it.

    Attributes:
        state: of the worker.
        ready: set once the worker was ready.
        since: when it became so, Unix time in seconds.
        models: what the engine serves, once it is ready.
        load_seconds: how long it took from the engine's start until its model answered.
        info: what the engine says of itself, some time after it is ready; see `record`.
    """

    def __init__(
        self, engine: StartableEngine, launch: Launch, client: EngineClient, directory: RunDirectory
    ) -> None:
        self._engine = engine
        self._launch = launch
        self._client = client
        self._directory = directory
        # Held by a thread that changes these, and writes them down.
        self._looking = threading.Lock()
        self._held: frozenset[SharedFile] = frozenset()
        self._marks: frozenset[ProcessMark] = frozenset()
        self.state = State.STARTING
        self.ready = asyncio.Event()
        self.since = time.time()
        self.models = ModelCards()
        self.load_seconds = 0.0
        self.info: Mapping[str, Json] = {}

    @asynccontextmanager
    async def running(
        self, changed: Changed, hurry: Callable[[], bool]
    ) -> AsyncIterator[asyncio.Task[EngineError]]:
        """Keep the engine running while the context is open, and nothing of it afterwards.

        Args:
            changed: called after each change of `state`, `models` or `info`.
            hurry: whether the engine's own way of ending is to be cut short.

        Yields:
            A task that ends, with what to raise, when the engine ends by itself, or when this
            worker fails to watch it.

        Raises:
            EngineError: it cannot be started at all.
        """
        environment = {**self._launch.environment, "TMPDIR": str(self._directory.temporary)}
        process = await EngineProcess.start(
            self._launch.command, environment, owner=self._directory.path.name
        )
        logger.info("engine started, process %d", process.pid)
        watching = asyncio.create_task(self._watch(process, changed), name="engine")
        try:
            yield watching
        finally:
            self.drain()
            failed = self.state is State.FAILED
            if not failed:
                logger.info(
                    "ending the engine: up to %.0f s; Ctrl-C again kills it", END_GRACE_SECONDS
                )
            left = await process.end(
                grace=0 if failed else END_GRACE_SECONDS,
                hurry=hurry,
                look=lambda: self._look(process),
            )
            await tasks.end(watching)
            removed = 0
            removing: BlockingCalls[int] = BlockingCalls("shared memory", deadline=LOOK_SECONDS)
            with suppress(HangError):
                removed = await removing.run(lambda: remove_unheld(self._held))
            if left:
                logger.error(
                    "processes of the engine do not die, and are left behind: %s",
                    ", ".join(map(str, left)),
                )
            else:
                logger.info("the engine is gone, with all its processes")
            if removed:
                logger.debug("removed %d files that it left in /dev/shm", removed)

    def drain(self) -> None:
        """Welcome no more requests."""
        if self.state in (State.STARTING, State.READY):
            self._enter(State.DRAINING)

    def _fail(self) -> None:
        if self.state is not State.DRAINING:
            self._enter(State.FAILED)

    async def _watch(self, process: EngineProcess, changed: Changed) -> EngineError:
        """The engine's life from its start to its end, and why it ended.

        A fault in one of the tasks is ours: a worker that cannot see its engine's start would be
        `starting` for ever, and one that does not read its log would stop it.
        """
        exit_code: int | None = None
        try:
            async with asyncio.TaskGroup() as group:
                log = group.create_task(process.follow(self._show), name="engine log")
                start = group.create_task(
                    self._wait_until_ready(process, changed), name="engine start"
                )
                exit_code = await process.wait()
                self._fail()
                start.cancel()
                # What it said last is still in the pipe; an orphan may hold that open.
                await asyncio.wait({log}, timeout=1)
                log.cancel()
        except ExceptionGroup as faults:
            self._fail()
            logger.exception("the engine cannot be watched any more")
            if exit_code is None:
                fault = faults.exceptions[0]
                return EngineError(f"a fault of this worker ended its engine: {fault!r}")
        reason = self._engine.describe_exit(process.log, exit_code, self._launch)
        full = "; a file system that it maps is full: /dev/shm?"
        return EngineError(
            f"the engine ended: {reason}{full if exit_code == -signal.SIGBUS else ''}"
        )

    async def _wait_until_ready(self, process: EngineProcess, changed: Changed) -> None:
        begun = said = time.monotonic()
        looking: BlockingCalls[None] = BlockingCalls("processes", deadline=LOOK_SECONDS)

        async def look() -> None:
            with suppress(HangError):
                await looking.run(lambda: self._look(process))

        while not (await self._client.answers() and (models := await self._client.models()).cards):
            if self.state is not State.STARTING:
                return  # it ended, or was asked to
            await look()
            if time.monotonic() - said >= _SAY_SECONDS:
                said = time.monotonic()
                logger.info(
                    "waiting for the engine's model to answer, %.0f s so far%s",
                    said - begun,
                    self._last_word(process),
                )
            await asyncio.sleep(_ASK_SECONDS)
        await look()
        process.log.clear()  # what it has survived is not what it ends of
        self.models = models
        self.load_seconds = time.monotonic() - begun
        self.info = await self._client.info(models, within=_INFO_SECONDS)
        if self.state is not State.STARTING:
            return  # it ended, or was asked to, meanwhile
        self._enter(State.READY)
        logger.info("ready after %.1f s: serving %s", self.load_seconds, ", ".join(models.names))
        await changed()
        try:
            await self._ask_what_it_is(changed)
        except Exception:
            logger.exception("the engine cannot be asked what it is")  # it serves all the same

    async def _ask_what_it_is(self, changed: Changed) -> None:
        """Take over what the engine says of itself, where it has not said so yet."""
        for attempt in range(_INFO_ATTEMPTS):
            if self.info:
                return
            await asyncio.sleep(2**attempt)
            if info := await self._client.info(self.models):
                self.info = info
                await changed()
        if not self.info:
            logger.info(
                "the engine does not say what it is: %s has no answer", self._engine.info_path
            )

    def _last_word(self, process: EngineProcess) -> str:
        word = self._engine.describe_progress(process.log)
        return f"; it last said: {word[:100]}" if word else ""

    def _look(self, process: EngineProcess) -> None:
        """Note the engine's processes, and the shared memory that they hold. Blocks."""
        members = process.members()
        with self._looking:
            self._marks |= marks(members)
            self._directory.note(self._marks, self._held)
        held = held_by(member.pid for member in members)
        with self._looking:
            self._held |= held
            self._directory.note(self._marks, self._held)

    def _enter(self, state: State) -> None:
        self.state = state
        self.since = time.time()
        if state is State.READY:
            self.ready.set()

    def _show(self, line: str) -> None:
        key = self._launch.api_key
        engine_log.info("%s", line.replace(key, "***") if key else line)
