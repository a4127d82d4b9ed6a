"""One run of an engine: from the start of its processes until all of them have ended."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from dynamometer.engines.interface import Launch, StartableEngine
from dynamometer.errors import EngineError
from dynamometer.process import out_of_memory, tasks
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.children import ProcessIdentity, identities
from dynamometer.process.exits import Exits, ProcessExit
from dynamometer.process.shared_memory import SharedFile, mapped_by, remove_unmapped
from dynamometer.runtime.lifecycle import EngineExit, ExitCause
from dynamometer.worker.process_tree import CHECK_SECONDS, EngineProcess
from dynamometer.worker.run_directory import RunDirectory

logger = logging.getLogger(__name__)

# After the first end of a process: the last lines of the log arrive, and the ends that it caused.
# Before the engine is ready, the last lines are the reason of its end, and no stream waits.
_SETTLE_SECONDS: Final = 0.1
_START_SETTLE_SECONDS: Final = 1.0
# A kill that is older than one to two of these intervals is of another process.
_KILLS_SECONDS: Final = 60.0
_FIRST: Final = asyncio.FIRST_COMPLETED
_SERVER: Final = "server"
_LONGEST_NAME: Final = 80


class EngineRun:
    """The processes of one run, the files that they leave behind, and the reason of their end.

    An engine ends when any of its essential processes ends: the first one, and those that
    `Engine.is_process` recognises. Compilers and resource trackers come and go.

    Attributes:
        process: the engine's processes and log.
    """

    def __init__(
        self,
        engine: StartableEngine,
        launch: Launch,
        directory: RunDirectory,
        first: EngineProcess,
        *,
        temporary: Path,
        kills: int,
    ) -> None:
        """Own the processes of an engine that was just started.

        Args:
            engine: the kind of the engine.
            launch: the command that started it.
            directory: the directories of the worker.
            first: the engine's first process.
            temporary: the engine's directory for temporary files.
            kills: the result of `out_of_memory.kills` before the start.
        """
        self._engine = engine
        self._launch = launch
        self._directory = directory
        self.process = first
        self._temporary = temporary
        self._exits = Exits()
        self._watchable = True
        self._settle_seconds = _START_SETTLE_SECONDS
        self._recording: BlockingCalls[Mapping[psutil.Process, str]] = BlockingCalls(
            "processes", deadline=CHECK_SECONDS
        )
        # The last numbers of kills. The first one is at least some seconds old at the next end.
        self._kills = deque([kills], maxlen=2)
        # Threads hold the lock while they change the two sets and call `RunDirectory.record`.
        self._record_lock = threading.Lock()
        self._shared_files: frozenset[SharedFile] = frozenset()
        self._processes: frozenset[ProcessIdentity] = frozenset()

    @classmethod
    async def start(
        cls, engine: StartableEngine, launch: Launch, directory: RunDirectory
    ) -> EngineRun:
        """Start the engine.

        Raises:
            EngineError: The program is missing or cannot be executed, or the file system is full.
        """
        try:
            temporary = await asyncio.to_thread(directory.create_temporary)
        except OSError as error:
            raise EngineError(
                f"cannot create a directory in {directory.temporary} for the engine's temporary "
                f"files: {error.strerror}"
            ) from None
        kills = await asyncio.to_thread(out_of_memory.kills)
        environment = {**launch.environment, "TMPDIR": str(temporary)}
        try:
            first = await EngineProcess.start(launch.command, environment, owner=directory.mark)
        except EngineError:
            await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)
            raise
        return cls(engine, launch, directory, first, temporary=temporary, kills=kills)

    def note_ready(self) -> None:
        """Forget the log of the start: the reason of a later end is not in it."""
        self.process.log.clear()
        self._settle_seconds = _SETTLE_SECONDS

    async def record(self) -> bool:
        """Record the engine's processes and shared memory, and watch the essential processes.

        Returns:
            False if the processes could not be checked now.
        """
        try:
            essential = await self._recording.run(self._record)
        except HangError:
            return False
        for process, name in essential.items():
            self._watch(process, name)
        return True

    async def exited(self, log: asyncio.Task[None]) -> EngineExit:
        """Wait until the first process, or another essential one, ends; return the reason.

        Args:
            log: the task that reads the log.
        """
        first = asyncio.create_task(self.process.wait())
        other = asyncio.create_task(self._exits.any.wait())
        try:
            ends = {first, other}
            while not (await asyncio.wait(ends, timeout=_KILLS_SECONDS, return_when=_FIRST))[0]:
                self._kills.append(await asyncio.to_thread(out_of_memory.kills))
            # The log ends a moment before the last process that can write to it.
            await asyncio.wait({log, first}, timeout=self._settle_seconds)
            ended = list(self._exits.found)
            if first.done():
                ended.insert(0, ProcessExit(self.process.pid, _SERVER, first.result()))
        finally:
            await tasks.end(first)
            await tasks.end(other)
        kills = await asyncio.to_thread(out_of_memory.kills)
        return self.describe(first_cause(ended), memory_ran_out=kills > self._kills[0])

    async def end(self, *, grace: float, kill_now: Callable[[], bool]) -> None:
        """End all processes, and remove their temporary files and their files in /dev/shm.

        Args:
            grace: the longest time between SIGTERM and SIGKILL in seconds; 0 for SIGKILL only.
            kill_now: returns True when the processes must be killed without waiting.
        """
        self._exits.close()
        remaining = await self.process.end(grace=grace, kill_now=kill_now, check=self._check)
        if remaining:
            logger.error(
                "processes of the engine did not end and keep running: %s",
                ", ".join(map(str, remaining)),
            )
        else:
            logger.info("all processes of the engine have ended")
        removing: BlockingCalls[None] = BlockingCalls(
            "removal of the engine's files", deadline=CHECK_SECONDS
        )
        try:
            await removing.run(self._remove_leftovers)
        except HangError as error:
            logger.warning("%s; files of the engine may stay", error)

    def describe(self, ended: ProcessExit, *, memory_ran_out: bool) -> EngineExit:
        """Return the end of the engine.

        Args:
            ended: the end of the process that caused it.
            memory_ran_out: the kernel has killed a process because memory ran out.
        """
        code = ended.code
        killed = code is not None and code < 0
        cause = ExitCause.SIGNAL if killed else ExitCause.EXIT
        if memory_ran_out and code in (None, -signal.SIGKILL):
            cause = ExitCause.OUT_OF_MEMORY
            reason = (
                "the kernel killed it because memory ran out: raise the memory limit of its "
                "container or cgroup"
            )
        elif code is None:
            reason = "its exit code is unknown"
        else:
            # SGLang kills its own server last. So another process was killed from outside, and
            # could not log a reason.
            from_outside = code == -signal.SIGKILL and ended.name != _SERVER
            log = () if from_outside else self.process.log
            reason = self._engine.describe_exit(log, code, self._launch)
        if code == -signal.SIGBUS:
            reason += "; is a file system that the engine maps, such as /dev/shm, full?"
        if ended.name != _SERVER:
            reason = f"process {ended.name}: {reason}"
        description = f"the engine ended: {reason}"
        return EngineExit(code=code, cause=cause, description=description, process=ended.name)

    def _watch(self, process: psutil.Process, name: str) -> None:
        try:
            self._exits.watch(process, name)
        except OSError as error:
            if self._watchable:
                logger.warning(
                    "the end of the engine's process %s cannot be watched: %s; only the end of the "
                    "first process is noticed",
                    name,
                    error.strerror,
                )
            self._watchable = False

    def _remove_leftovers(self) -> None:
        if removed := remove_unmapped(self._shared_files):
            logger.debug("removed files of the engine from /dev/shm: %d", removed)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _check(self) -> None:
        self._record()

    def _record(self) -> Mapping[psutil.Process, str]:
        """Record the processes and the shared memory that they map; return the essential ones.

        This call blocks; run it in a thread.
        """
        members = self.process.members()
        # The processes are recorded first, because the rest hangs if one of them is stuck.
        with self._record_lock:
            self._processes |= identities(members)
            self._directory.record(self._processes, self._shared_files)
        shared_files = mapped_by(member.pid for member in members)
        with self._record_lock:
            self._shared_files |= shared_files
            self._directory.record(self._processes, self._shared_files)
        return essential(members, self._engine.is_process, first=self.process.pid)


def essential(
    members: Iterable[psutil.Process], is_process: Callable[[Sequence[str]], bool], *, first: int
) -> Mapping[psutil.Process, str]:
    """Return those processes of an engine whose end is its end, with their names.

    The first process is omitted: its parent waits for it. So is a process with the command line of
    its parent, which is a fork: until a fork runs its own program, it looks like its parent.

    Args:
        members: the processes of the engine.
        is_process: returns whether a command line is one of the engine's.
        first: the pid of the first process.
    """
    commands: dict[int, Sequence[str]] = {}
    parents: dict[psutil.Process, int] = {}
    for member in members:
        with suppress(psutil.Error, OSError):
            commands[member.pid], parents[member] = member.cmdline(), member.ppid()
    found = {}
    for member, parent in parents.items():
        command = commands[member.pid]
        if member.pid != first and is_process(command) and commands.get(parent) != command:
            found[member] = command[0].strip()[:_LONGEST_NAME]
    return found


def first_cause(ended: Sequence[ProcessExit]) -> ProcessExit:
    """Return the end that caused the others, of processes that ended within a moment.

    An engine that fails kills its own processes, and their first process dies last of all: so an
    exit or another signal than SIGKILL is the cause. Else the first end is.
    """
    by_itself = (one for one in ended if one.code not in (None, -signal.SIGKILL))
    return next(by_itself, ended[0])
