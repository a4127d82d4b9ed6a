"""The engine's processes: their start, their log, and their end.

The engine leads a session of its own, so that Ctrl-C reaches the worker only. When the worker dies,
the kernel kills the engine's first process (`PR_SET_PDEATHSIG`), and SGLang's other processes then
end themselves. The worker adopts processes that the engine orphans (`PR_SET_CHILD_SUBREAPER`), so
that they stay among its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from typing import Final

import psutil

from dynamometer.errors import EngineError
from dynamometer.process.blocking import BlockingCalls, HangError
from dynamometer.process.children import (
    alive,
    descendants,
    environment,
    kill,
    session,
)
from dynamometer.process.parent_death import die_with_parent
from dynamometer.runtime.identity import WORKER_MARK

# <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None)

LOG_LINES_KEPT: Final = 400
# The longest waits for a check of the engine's processes, and for killed processes to end.
CHECK_SECONDS: Final = 2.0
KILL_SECONDS: Final = 5.0
_LONGEST_LINE: Final = 16384
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class EngineProcess:
    """The processes of a running engine.

    Attributes:
        pid: the pid of the first process, which is also the id of the session.
        log: the last lines of the output.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        mark: tuple[str, str],
        output: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
    ) -> None:
        self._process = process
        self._mark = mark
        self._output = output
        self._pipe = pipe
        self.pid = process.pid
        self.log: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        # All processes that `end` has found. The threads of `end` only add processes. They hold no
        # lock, because a thread that checks may hang while another thread kills.
        self._found: frozenset[psutil.Process] = frozenset()

    @classmethod
    async def start(
        cls, command: Sequence[str], variables: Mapping[str, str], *, owner: str
    ) -> EngineProcess:
        """Start `command`; `read_log` reads its standard output and standard error.

        Args:
            command: the command line.
            variables: the environment.
            owner: the mark of the worker, which all processes of the engine carry.

        Raises:
            EngineError: The program is missing, or cannot be executed.
        """
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            # asyncio's `wait` waits until all pipes that asyncio created are closed, and an orphan
            # may keep a pipe open. asyncio does not wait for a pipe that is created here.
            reading, writing = os.pipe()
            pipe = os.fdopen(reading, "rb", buffering=0)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**variables, WORKER_MARK: owner},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=writing,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            except BaseException:
                pipe.close()
                raise
            finally:
                os.close(writing)
        except OSError as error:
            raise EngineError(
                f"cannot run {command[0]}: {error.strerror} (--engine-python names the "
                "interpreter that has the engine)"
            ) from None
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), pipe
        )
        return cls(process, (WORKER_MARK, owner), output, transport)

    async def read_log(self, show: Callable[[str], None], *, key: str | None = None) -> None:
        """Call `show` with each line of the engine's output, and keep the last lines in `log`.

        Args:
            show: called with each line.
            key: a secret that lines contain, replaced by `***`.
        """
        async for line in self._lines():
            shown = line.replace(key, "***") if key else line
            self.log.append(shown)
            show(shown)

    async def _lines(self) -> AsyncIterator[str]:
        """Yield the lines of the output without colours; each state of a progress bar is a line."""
        rest = b""
        while chunk := await self._output.read(65536):
            *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
            if len(rest) > _LONGEST_LINE:
                lines.append(rest)
                rest = b""
            for line in lines:
                if line.strip():
                    yield _decode(line)
        if rest.strip():
            yield _decode(rest)

    async def wait(self) -> int:
        """Wait until the first process ends, and return its exit code; -N if signal N killed it."""
        return await self._process.wait()

    def members(self) -> list[psutil.Process]:
        """Return the living processes of the engine: its session, and all descendants.

        This call blocks, because it reads /proc; run it in a thread. If a process of the engine is
        stuck, the call may hang.
        """
        found = {}
        for child in psutil.Process().children():
            if self._belongs_to_engine(child):
                for member in [child, *descendants(child)]:
                    found[member.pid] = member
        return [p for p in found.values() if alive(p)]

    def _belongs_to_engine(self, child: psutil.Process) -> bool:
        """Return whether a child of this process, own or adopted, belongs to the engine.

        A child belongs to the engine if it is in the session of the engine, or if its environment
        has the mark of the engine.
        """
        return session(child.pid) == self.pid or self._mark in environment(child)

    async def end(
        self, *, grace: float, kill_now: Callable[[], bool], check: Callable[[], None]
    ) -> Sequence[int]:
        """Send SIGTERM to the first process, and later SIGKILL to all processes that still live.

        Args:
            grace: the longest time between the two signals, in seconds; 0 for SIGKILL alone.
            kill_now: returns True when the processes must be killed without waiting.
            check: called repeatedly in a thread between the two signals, while processes live.

        Returns:
            The pids of the processes that did not end within `KILL_SECONDS` after SIGKILL. A
            process in uninterruptible sleep ends only after its system call.
        """
        if grace:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace
        checking: BlockingCalls[Sequence[int]] = BlockingCalls("checking", deadline=CHECK_SECONDS)
        with contextlib.suppress(HangError):
            while (
                await checking.run(self._find_living, check)
                and clock() < deadline
                and not kill_now()
            ):
                await asyncio.sleep(0.1)
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # a check that hangs does not delay this call
        deadline = clock() + KILL_SECONDS
        killing: BlockingCalls[Sequence[int]] = BlockingCalls("killing", deadline=CHECK_SECONDS)
        try:
            while (remaining := await killing.run(self._kill_all)) and clock() < deadline:
                await asyncio.sleep(0.02)
        except HangError:
            remaining = [self.pid]
        if not remaining:
            await self.wait()
            # A zombie with threads keeps its children until it is reaped; this process adopts them
            # only then, and reaps them here.
            with contextlib.suppress(HangError):
                await killing.run(self._kill_all)
        self._pipe.close()
        return remaining

    def _find_living(self, check: Callable[[], None]) -> Sequence[int]:
        """Find the living processes, call `check`, and return the pids of all that still live."""
        self._found |= frozenset(self.members())
        check()
        return self._reap_and_list_living()

    def _kill_all(self) -> Sequence[int]:
        """Kill all processes, and return the pids of those that still live."""
        for member in self._found:
            kill(member)
        self._found |= frozenset(self.members())
        for member in self._found:
            kill(member)
        return self._reap_and_list_living()

    def _reap_and_list_living(self) -> Sequence[int]:
        """Reap the found processes that have ended, and return the pids of the others."""
        found = self._found
        living = [member.pid for member in found if alive(member)]
        # A process that ends after this check is reaped at the next call.
        self._reap({member.pid for member in found}.difference(living))
        return living

    def _reap(self, ended: Set[int]) -> None:
        """Reap ended processes that this process adopted; asyncio reaps the first process.

        Args:
            ended: the pids of found processes that have ended.
        """
        # These processes started and ended between two checks.
        missed = {
            child.pid
            for child in psutil.Process().children()
            if session(child.pid) == self.pid and not alive(child)
        }
        for pid in (ended | missed) - {self.pid}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def kill_owned(owner: str) -> int:
    """Kill all processes of this user that `EngineProcess.start` marked with `owner`.

    A process that sets its title can overwrite the mark in its environment. Therefore all
    processes in the session of a marked process are killed, too.

    Returns:
        The number of killed processes.
    """
    processes = list(psutil.process_iter())
    marked = {p.pid for p in processes if (WORKER_MARK, owner) in environment(p)}
    sessions = {session(pid) for pid in marked} - {-1, session(os.getpid())}
    owned = [p for p in processes if p.pid in marked or session(p.pid) in sessions]
    for process in owned:
        kill(process)
    return len(owned)


def _decode(line: bytes) -> str:
    return _ANSI.sub("", line.decode("utf-8", "replace")).rstrip()
