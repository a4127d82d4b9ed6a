"""The processes of a frontend: their start, restart and end.

The processes serve requests on one port. The supervisor serves only the ops listener: it restarts
processes that end, renders the page of all processes, and registers the frontend once in discovery.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from errno import EMFILE
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from dynamometer.errors import DirectoryError, DynamometerError, FrontendError
from dynamometer.frontend.app import FrontendOptions, check, record, show_draining
from dynamometer.frontend.canary import Canary
from dynamometer.frontend.channel import SupervisorEnd
from dynamometer.frontend.group_metrics import GroupCollector, ProcessesCollector
from dynamometer.frontend.member import Membership
from dynamometer.frontend.ops import OpsListener
from dynamometer.frontend.service_metrics import FrontendMetrics, restart_counter
from dynamometer.frontend.shared_port import SharedPort
from dynamometer.metrics.refresh import PageRequest
from dynamometer.metrics.scraping import Scrapes
from dynamometer.process import locked_directories, private_directories, tasks
from dynamometer.process.locked_directories import locked_directory
from dynamometer.process.signals import Stop
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.distributed import DistributedRuntime
from dynamometer.runtime.identity import hexadecimal
from dynamometer.variables import FRONTEND_MEMBER, HTTP_METRICS_PATH

logger = logging.getLogger(__name__)

# The pause before a restart: zero after a stable run, else twice the last one within these limits.
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
STABLE_SECONDS: Final = 60.0
# The time between the end of the drain timeout and SIGKILL.
_KILL_SECONDS: Final = 5.0
_FILES_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_LEFTOVERS: Final = re.compile("frontend-[0-9a-f]{16}")


async def serve_group(options: FrontendOptions, count: int, arguments: Sequence[str]) -> None:
    """Run a frontend of several processes until a signal ends it.

    Args:
        options: the options of the frontend.
        count: the number of processes.
        arguments: the flags that were parsed into `options`.

    Raises:
        DynamometerError: The frontend cannot start, for example because its port is in use.
    """
    check(options)
    stop = Stop()
    discovery = await connect(options.discovery_directory)
    group: ProcessGroup | None = None
    runtime = DistributedRuntime(
        process_collector=ProcessesCollector(lambda: group.pids if group else ())
    )
    runtime.page.limit_size(options.max_page_bytes)
    described = CollectorRegistry()
    FrontendMetrics(described, prefix=options.metrics_prefix, bounds=options.buckets)
    Canary(described, prefix=options.metrics_prefix)
    async with AsyncExitStack() as stack:
        name = f"frontend-{hexadecimal(runtime.instance_id)}"
        memory = private_directories.create_memory()
        files = stack.enter_context(
            locked_directory(memory, name, leftovers=_LEFTOVERS, clear=_log_leftover)
        )
        port = SharedPort(options.host, options.port)
        stack.callback(port.close)
        collector = GroupCollector(files, described)
        stack.callback(collector.close)
        runtime.registry.register(collector)
        restarts = restart_counter(runtime.registry)
        ops = OpsListener(options.ops_host, options.ops_port)
        own = record(options, runtime, port.url)
        await stack.enter_async_context(
            ops.serving(discovery, own, max_page_bytes=options.max_page_bytes)
        )
        registration = await stack.enter_async_context(discovery.register(own))
        await stack.enter_async_context(
            tasks.restarting(partial(show_draining, stop, registration, own), name="draining")
        )
        group = ProcessGroup(
            count,
            port=port,
            arguments=arguments,
            files=files,
            page=Scrapes(runtime.page).render,
            count_restart=restarts.inc,
            retire=collector.retire,
        )
        announcing = asyncio.create_task(
            _announce(group, port.url, options.paths[HTTP_METRICS_PATH], count, ops)
        )
        try:
            await group.run(stop, drain_seconds=options.drain_delay + options.drain_timeout)
        finally:
            await tasks.end(announcing)


def clear_leftovers() -> None:
    """Remove the directories of killed frontends, before a frontend of one process starts."""
    # Without a usable directory on tmpfs there is nothing to remove.
    with suppress(DirectoryError):
        locked_directories.clear_leftovers(
            private_directories.create_memory(), _LEFTOVERS, _log_leftover
        )


async def _announce(
    group: ProcessGroup, url: str, metrics_url: str, count: int, ops: OpsListener
) -> None:
    await group.serving.wait()
    logger.info("OpenAI-compatible at %s/v1, metrics at %s, %d processes", url, metrics_url, count)
    ops.announce()


def _log_leftover(path: Path) -> None:
    logger.info("removed after a killed frontend: the directory %s", path)


class ProcessGroup:
    """The processes of one frontend. The event loop owns all attributes.

    Attributes:
        serving: set when all processes have accepted requests at the same time.
    """

    def __init__(
        self,
        count: int,
        *,
        port: SharedPort,
        arguments: Sequence[str],
        files: Path,
        page: Callable[[PageRequest], Awaitable[bytes]],
        count_restart: Callable[[], None],
        retire: Callable[[int], None],
    ) -> None:
        """Create the group; `run` starts the processes.

        Args:
            count: the number of processes.
            port: the port of the frontend.
            arguments: the flags of the frontend, which each process parses again.
            files: the directory of the processes' multiprocess files.
            page: a function that renders the page of the whole frontend.
            count_restart: a function that is called before each restart of a process.
            retire: a function that is called in a thread with the pid of each ended process.
        """
        self._port = port
        self._python = (sys.executable, *_path_flags())
        self._arguments = arguments
        self._files = files
        self._page = page
        self._count_restart = count_restart
        self._retire = retire
        self._members = [_Slot(number) for number in range(1, count + 1)]
        self._restarts = 0
        self._ending = asyncio.Event()
        self.serving = asyncio.Event()

    @property
    def pids(self) -> Sequence[int]:
        """The pids of the running processes; any thread may read this property."""
        processes = [member.process for member in self._members]
        return [one.pid for one in processes if one is not None and one.returncode is None]

    @property
    def state(self) -> Mapping[str, object]:
        """The state of the processes, as `/health` shows it."""
        return {
            "expected": len(self._members),
            "serving": sum(member.ready for member in self._members),
            "restarts": self._restarts,
        }

    async def run(self, stop: Stop, *, drain_seconds: float) -> None:
        """Run all processes until a signal, then end the processes and wait for their end.

        Args:
            stop: the signals that end the frontend.
            drain_seconds: the time that requests in flight have to finish.

        Raises:
            FrontendError: A process ended before all processes had accepted requests.
        """
        keeping = asyncio.create_task(self._keep_all(), name="frontend processes")
        try:
            await tasks.first_of(stop.requested, keeping)
            if not keeping.done():
                await self._end(stop, keeping, drain_seconds)
            await keeping
        finally:
            self._ending.set()
            self._port.close()
            await tasks.end(keeping)  # kills the processes that still run

    async def _end(self, stop: Stop, keeping: asyncio.Task[None], drain_seconds: float) -> None:
        """End all processes: SIGTERM first, and SIGKILL at a second signal or after the timeout."""
        self._ending.set()
        self._port.close()
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_seconds + _KILL_SECONDS):
                await tasks.first_of(stop.immediate, keeping)
        if not keeping.done():
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members:
            if member.process is not None and member.process.returncode is None:
                with suppress(ProcessLookupError):
                    member.process.send_signal(number)

    async def _keep_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for member in self._members:
                    group.create_task(self._keep(member))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first one cancelled the others

    async def _keep(self, member: _Slot) -> None:
        """Run one process, and restart the process after a pause whenever it ends."""
        pause = 0.0
        while not self._ending.is_set():
            started = time.monotonic()
            reason = await self._run_once(member)
            if self._ending.is_set():
                return
            if not self.serving.is_set():
                raise FrontendError(f"process {member.number} of the frontend {reason}")
            self._restarts += 1
            self._count_restart()
            lived = time.monotonic() - started
            if lived > STABLE_SECONDS:
                pause = 0.0
            logger.warning(
                "process %d of the frontend %s: restarting %s",
                member.number, reason, f"in {pause:g} s" if pause else "now",
            )  # fmt: skip
            self._send_state()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)

    async def _run_once(self, member: _Slot) -> str:
        """Start a process, wait until it has ended, and return how it ended."""
        try:
            listener = self._port.open()
        except DynamometerError as error:
            return f"cannot start ({error})"
        try:
            pid, code = await self._run_process(member, listener)
        except OSError as error:
            advice = ": raise the limit (ulimit -n, LimitNOFILE=)" if error.errno == EMFILE else ""
            return f"cannot start ({error.strerror}{advice})"
        finally:  # at once: until then, the kernel gives connections to this socket
            if not self._ending.is_set():
                self._port.release(listener)
        await asyncio.to_thread(self._retire, pid)
        starting = "" if self.serving.is_set() else " while it started: its message is above"
        return f"(pid {pid}) {self._describe_end(code)}{starting}"

    async def _run_process(self, member: _Slot, listener: socket.socket) -> tuple[int, int]:
        """Start a process, wait until it has ended, and return its pid and its exit code."""
        own, others = socket.socketpair()
        try:
            with others:
                membership = Membership(
                    number=member.number,
                    count=len(self._members),
                    supervisor=os.getpid(),
                    listener=listener.fileno(),
                    channel=others.fileno(),
                )
                process = await asyncio.create_subprocess_exec(
                    *self._python, "-m", "dynamometer.frontend", *self._arguments,
                    stdin=DEVNULL,
                    env=os.environ
                    | {FRONTEND_MEMBER: str(membership), _FILES_VARIABLE: str(self._files)},
                    pass_fds=(listener.fileno(), others.fileno()),
                    start_new_session=True,  # Ctrl-C reaches the supervisor only
                )  # fmt: skip
        except BaseException:
            own.close()
            raise
        member.process = process
        if self._ending.is_set():
            self._signal(signal.SIGTERM)
        member.channel = SupervisorEnd(own)
        answering = asyncio.create_task(
            member.channel.serve(
                self.state,
                ready=lambda: self._note_ready(member),
                page=self._page,
                drained=lambda: self._note_drained(member),
            )
        )
        try:
            return process.pid, await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            member.process = member.channel = None
            member.ready = False
            self._end_drained()
            await tasks.end(answering)

    def _describe_end(self, code: int) -> str:
        if code == -signal.SIGBUS:
            return f"was ended by SIGBUS, as when the file system of {self._files} is full,"
        return f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"

    def _note_ready(self, member: _Slot) -> None:
        member.ready = True
        if all(one.ready for one in self._members):
            self.serving.set()
        self._send_state()

    def _note_drained(self, member: _Slot) -> None:
        if self._ending.is_set():
            member.drained = True
            self._end_drained()
        elif member.channel is not None:  # only this process received a signal
            member.channel.close()

    def _end_drained(self) -> None:
        """Let the processes end together: the port and the page answer until the last request."""
        running = [member for member in self._members if member.channel is not None]
        if self._ending.is_set() and all(member.drained for member in running):
            for member in running:
                if member.channel is not None:
                    member.channel.close()

    def _send_state(self) -> None:
        for member in self._members:
            if member.channel is not None:
                member.channel.send_state(self.state)


class _Slot:
    """The place of one process, and of its restarts, in the group.

    Attributes:
        number: the number of the process, from 1.
        process: the running process, or None.
        channel: the supervisor's end of the channel to the process.
        ready: True while the process accepts requests.
        drained: True when the process is ending, and its last request has finished.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.channel: SupervisorEnd | None = None
        self.ready = False
        self.drained = False


def _path_flags() -> Sequence[str]:
    """Return the flags of Python with which a process imports the same modules as the supervisor.

    `python -m` adds the current directory to the path, where a file might have the name of a
    module; the script `dyno` does not.
    """
    try:
        current = str(Path.cwd())
    except OSError:  # the directory was removed
        current = ""
    return () if {"", current} & set(sys.path) else ("-P",)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
