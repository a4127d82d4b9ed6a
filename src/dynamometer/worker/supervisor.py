"""The supervisor of an engine: start it, wait until it is ready, restart it when it ends, end it.

`runtime/lifecycle` has the states and decides about restarts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

from dynamometer import logs
from dynamometer.engines.interface import Launch, ModelCards, StartableEngine
from dynamometer.errors import EngineError
from dynamometer.http.addresses import free_port
from dynamometer.process import tasks
from dynamometer.runtime.lifecycle import (
    DEFAULT_POLICY,
    EngineExit,
    ExitCause,
    Lifecycle,
    RestartPolicy,
)
from dynamometer.runtime.record import AGGREGATED, Json, State
from dynamometer.worker.accelerator_memory import AcceleratorMemory
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.engine_log import EngineLog
from dynamometer.worker.engine_run import EngineRun
from dynamometer.worker.nodes import Nodes
from dynamometer.worker.run_directory import RunDirectory

logger = logging.getLogger(__name__)
engine_log = logging.getLogger(logs.ENGINE_LOGGER)

# SGLang drains for some seconds after SIGTERM. All processes of an engine must end within 15 s, the
# limit of this project: these 8 s, then 5 s after SIGKILL (KILL_SECONDS), and 2 s if a check of the
# processes hangs (CHECK_SECONDS).
END_GRACE_SECONDS: Final = 8.0
_POLL_SECONDS: Final = 0.5
_PROGRESS_SECONDS: Final = 5.0
_HANG_CHECK_SECONDS: Final = 1.0
_LOSS_CHECK_SECONDS: Final = 0.1
# An engine answers a request for facts about itself in milliseconds. If the first request fails,
# the worker becomes ready without the facts, and repeats the request later.
_INFO_SECONDS: Final = 1.0
_INFO_ATTEMPTS: Final = 5

OnChange = Callable[[], Awaitable[None]]


class Supervisor:
    """One engine, over all of its restarts, and the state of the worker that owns it.

    Attributes:
        lifecycle: the state of the engine.
        public_log: the last lines of the engine's log that `/health` may show.
        launch: the command of the present run, or of the last one.
        ready: set while the engine is ready for the worker's requests: from its first answer until
            its end.
        models: the models that the engine serves; empty until the engine answers.
        load_seconds: the time from the engine's last start until its model answered.
        info: facts about the engine, filled when the engine is ready or some seconds later; empty
            until then. `runtime/record` describes the facts.
    """

    def __init__(
        self,
        engine: StartableEngine,
        launch: Launch,
        client: EngineClient,
        directory: RunDirectory,
        *,
        policy: RestartPolicy = DEFAULT_POLICY,
        hang_restart: float = 0.0,
        nodes: Nodes | None = None,
    ) -> None:
        """Prepare; `running` starts the engine.

        Args:
            engine: the kind of the engine.
            launch: the command of the first run; a restart uses other ports.
            client: the worker's own requests to the engine.
            directory: the directories of the worker.
            policy: the limits of restarts.
            hang_restart: the seconds after which an unresponsive engine counts as ended; 0: never.
            nodes: the nodes of the engine; None for an engine on one node.
        """
        self._engine = engine
        self._client = client
        self._directory = directory
        self._policy = policy
        self._hang_restart = hang_restart
        self._nodes = nodes
        self._memory = AcceleratorMemory()
        self._starting: asyncio.Task[EngineRun] | None = None
        self._run: EngineRun | None = None  # until all of its processes have ended
        self._restarts_wanted = True  # until the worker is ending
        self._died = False  # the present run has ended by itself; its other processes may live
        self.public_log = EngineLog(engine.public_lines())
        self.lifecycle = Lifecycle(time.time(), policy)
        self.launch = launch
        self.ready = asyncio.Event()
        self.models = ModelCards()
        self.load_seconds = 0.0
        self.info: Mapping[str, Json] = {}

    @property
    def state(self) -> State:
        """The state of the worker."""
        return self.lifecycle.state

    @asynccontextmanager
    async def running(
        self,
        on_change: OnChange,
        kill_now: Callable[[], bool],
        *,
        on_start: Callable[[Launch], None] | None = None,
        on_end: OnChange | None = None,
    ) -> AsyncIterator[asyncio.Task[EngineError]]:
        """Run the engine while the context is open, and end all of its processes afterwards.

        Args:
            on_change: called and awaited after a change of the state, and after `info` changed.
            kill_now: returns True when the engine must be killed without waiting.
            on_start: called before each start.
            on_end: called and awaited after an engine ended by itself: after all of its processes,
                and before its restart.

        Yields:
            A task that finishes, with the error as its result, when the engine is given up.

        Raises:
            EngineError: The engine cannot be started.
        """
        self._on_change, self._kill_now = on_change, kill_now
        self._on_start, self._on_end = on_start, on_end
        try:
            run = await self._start()
            supervising = asyncio.create_task(self._supervise(run), name="engine")
            try:
                yield supervising
            finally:
                self.drain()
                await tasks.end(supervising)
        finally:
            if self._starting is not None:
                with suppress(EngineError):
                    self._run = await self._starting
            if self._run is not None:
                await self._end_run(self._run)

    def drain(self) -> None:
        """Enter the state `draining`, unless the engine has failed; accept no further requests."""
        if self.state is not State.DRAINING:
            self.lifecycle.drain(time.time(), "the worker is ending")

    def stop_restarts(self) -> None:
        """Do not start the engine again, because the worker is ending."""
        self._restarts_wanted = False

    async def _supervise(self, run: EngineRun) -> EngineError:
        """Watch the engine and restart it, until it is given up; return the reason as an error."""
        ended = await self._watch(run)
        while True:
            self.ready.clear()
            self._died = True
            if self._nodes is not None:
                ended = await self._find_first_end(ended, self._nodes)
                self._nodes.group.end_run()
            pause = self.lifecycle.note_exit(time.time(), ended)
            restart_at = time.monotonic() + (pause or 0)
            if pause is not None:
                plan = f"; starting it again after {pause:.0f} s" if self._restarts_wanted else ""
                logger.error("%s%s", ended.description, plan)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._kill(), name="killing the engine")
                await self._on_change()
            if pause is None:
                return self._error(ended)
            if self._on_end is not None:
                await self._on_end()
            if await self._memory.wait_until_free():
                self.lifecycle.note_attempt(time.time(), "waited for the accelerators' memory")
            await asyncio.sleep(restart_at - time.monotonic())
            if not self._restarts_wanted:
                return self._error(ended)
            self.launch = self.launch.with_other_ports(free_port)
            try:
                run = await self._start()
            except EngineError as error:
                ended = EngineExit(code=None, cause=ExitCause.EXIT, description=str(error))
            else:
                ended = await self._watch(run)

    def _error(self, ended: EngineExit) -> EngineError:
        limit = self._policy.limit
        node_lost = ended.cause is ExitCause.NODE_LOST
        given_up = (
            f"; it ended {limit + 1} times, and was not ready for "
            f"{self._policy.stable_seconds / 60:g} minutes between any two of these ends "
            "(--restart-limit)"
        )
        if not self.lifecycle.ever_ready and not node_lost:
            return EngineError(ended.description)
        return EngineError(f"{ended.description}{given_up if limit else ' (--restart-limit 0)'}")

    async def _start(self) -> EngineRun:
        """Start the engine.

        Raises:
            EngineError: The program is missing, or cannot be executed.
        """
        await self._memory.measure()
        if self._nodes is not None:
            self._nodes.group.start_run()
        self._client.use(self.launch)
        if self._on_start is not None:
            self._on_start(self.launch)
        # Not cancelled: the end of this worker must find the process.
        self._starting = asyncio.create_task(
            EngineRun.start(self._engine, self.launch, self._directory)
        )
        try:
            self._run = await asyncio.shield(self._starting)
        finally:
            if self._starting.done():
                self._starting = None
        self._died = False
        self.lifecycle.note_started(time.time())
        logger.info("engine started, process %d", self._run.process.pid)
        return self._run

    async def _kill(self) -> None:
        """Kill the other processes of an engine that ended."""
        if self._run is not None:
            await self._run.end(grace=0, kill_now=self._kill_now)
            self._run = None

    async def _end_run(self, run: EngineRun) -> None:
        # Only node 0 ends after SIGTERM; the others wait until it has ended.
        ends_itself = self.launch.answers_requests and not self._died
        grace = END_GRACE_SECONDS if ends_itself else 0
        if grace and self._kill_now():
            logger.info("killing the engine")
        elif grace:
            logger.info("ending the engine, for up to %.0f s; Ctrl-C again kills it", grace)
        await run.end(grace=grace, kill_now=self._kill_now)

    async def _watch(self, run: EngineRun) -> EngineExit:
        """Watch a run until it ends, and return the reason.

        A fault of this worker ends the engine as well. Otherwise the worker would stay `starting`
        forever, or the pipe of the log, which the worker no longer reads, would block the engine.
        """
        try:
            async with asyncio.TaskGroup() as group:
                log = group.create_task(
                    run.process.read_log(self._log_line, key=self.launch.api_key),
                    name="engine log",
                )
                start = group.create_task(self._wait_until_ready(run), name="engine start")
                ends = {group.create_task(run.exited(log), name="engine exit")}
                if self._hang_restart:
                    ends.add(group.create_task(self._wait_for_hang(), name="engine hang"))
                if self._nodes is not None:
                    loss = self._wait_for_loss(self._nodes)
                    ends.add(group.create_task(loss, name="loss of a node"))
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in (log, start, *ends):
                    task.cancel()
        except ExceptionGroup as faults:
            logger.exception("the engine cannot be watched any longer")
            fault = f"a fault of this worker ended its engine: {faults.exceptions[0]!r}"
            return EngineExit(code=None, cause=ExitCause.EXIT, description=fault)
        return done.pop().result()

    async def _wait_for_hang(self) -> EngineExit:
        """Return the end of an engine that stayed unresponsive for too long.

        Time in which this process itself did not run does not count.
        """
        seconds = 0.0
        while seconds < self._hang_restart:
            await asyncio.sleep(_HANG_CHECK_SECONDS)
            unresponsive = self.lifecycle.engine_state is State.UNRESPONSIVE
            seconds = seconds + _HANG_CHECK_SECONDS if unresponsive else 0.0
        return EngineExit(
            code=None,
            cause=ExitCause.HANG,
            description=f"the engine was unresponsive for {seconds:g} s (--hang-restart): "
            f"{self.lifecycle.reason}",
        )

    async def _wait_for_loss(self, nodes: Nodes) -> EngineExit:
        """Return the end of an engine that has lost another of its nodes."""
        while not nodes.group.loss:
            await asyncio.sleep(_LOSS_CHECK_SECONDS)
        return EngineExit(code=None, cause=ExitCause.NODE_LOST, description=nodes.group.loss)

    async def _find_first_end(self, ended: EngineExit, nodes: Nodes) -> EngineExit:
        """Return the end of this node's part of the engine, or the loss of a node that caused it.

        Most engines end by themselves when the connection to another node closes.
        """
        if ended.cause in (ExitCause.EXIT, ExitCause.SIGNAL):
            await nodes.refresh()
            if nodes.group.loss:
                logger.info("%s", ended.description)
                loss = nodes.group.loss
                return replace(ended, cause=ExitCause.NODE_LOST, description=loss)
        return ended

    async def _wait_until_ready(self, run: EngineRun) -> None:
        if self._nodes is not None or self.lifecycle.last_exit is not None:
            await self._on_change()  # the addresses and the epoch of this run
        launch = self.launch
        started = time.monotonic()
        models = await self._wait_for_models(run, started)
        run.note_ready()
        self.models = models
        self.load_seconds = time.monotonic() - started
        if launch.answers_requests:
            self.info = await self._client.fetch_info(models, timeout=_INFO_SECONDS)
        self.lifecycle.note_ready(time.time())
        self.ready.set()
        logger.info("ready after %.1f s: %s", self.load_seconds, _describe_part(launch, models))
        await self._on_change()
        while not await run.record():
            await asyncio.sleep(_PROGRESS_SECONDS)
        if not launch.answers_requests:
            return
        try:
            await self._fetch_missing_info()
        except Exception:
            # The worker needs no facts to serve requests.
            logger.exception("cannot request facts about the engine")

    async def _wait_for_models(self, run: EngineRun, started: float) -> ModelCards:
        """Return the models once the engine answers; none if this node does not serve them."""
        logged = started
        while True:
            healthy = await self._client.check_health()
            serves = self.launch.answers_requests
            models = await self._client.fetch_models() if healthy and serves else ModelCards()
            await run.record()
            if models.cards or (healthy and not serves):
                return models
            if time.monotonic() - logged >= _PROGRESS_SECONDS:
                logged = time.monotonic()
                logger.info(
                    "waiting for the engine's model to answer, %.0f s so far%s%s",
                    logged - started,
                    "" if self._nodes is None else self._nodes.describe_missing(),
                    self._last_line(run),
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _fetch_missing_info(self) -> None:
        """Request the facts about the engine again if the first request failed."""
        for attempt in range(_INFO_ATTEMPTS):
            if self.info:
                return
            await asyncio.sleep(2**attempt)
            if info := await self._client.fetch_info(self.models):
                self.info = info
                await self._on_change()
        if not self.info:
            logger.info(
                "the version and limits of the engine are unknown: no usable answer from %s",
                self._engine.info_path,
            )

    def _last_line(self, run: EngineRun) -> str:
        line = self._engine.describe_progress(run.process.log)
        return f"; its last line: {line[:100]}" if line else ""

    def _log_line(self, line: str) -> None:
        if self._engine.probes is not None and self._engine.probes.log_line.search(line):
            return
        self.public_log.add(line)
        engine_log.info("%s", line)


def _describe_part(launch: Launch, models: ModelCards) -> str:
    """Return the models or the node, with the side of a pair, for the log."""
    side = [] if launch.mode == AGGREGATED else [launch.mode]
    node = [f"node {launch.node_rank} of {launch.nodes}"] if launch.nodes > 1 else []
    if launch.answers_requests:
        text, details = f"serving {', '.join(models.names)}", [*side, *node]
    else:
        text, details = f"running {node[0]}", side
    return f"{text} ({', '.join(details)})" if details else text
