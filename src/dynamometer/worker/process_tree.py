"""The engine's processes: start them, read their log, end all of them.

The engine leads a session of its own, so that Ctrl-C reaches the worker alone. Its first
process is killed by the kernel when the worker dies (`PR_SET_PDEATHSIG`), SGLang's other
processes then end themselves; and the worker adopts what the engine orphans
(`PR_SET_CHILD_SUBREAPER`), so that nothing of it gets out of sight.
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
from dynamometer.process.children import alive, descendants, environment, kill, session
from dynamometer.runtime.identity import WORKER_MARK

# <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None)

LOG_LINES_KEPT: Final = 400
# How long a look at the engine's processes is waited for, and how long killed ones.
LOOK_SECONDS: Final = 2.0
KILL_SECONDS: Final = 5.0
_LONGEST_LINE: Final = 16384
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class EngineProcess:
    """A running engine."""

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

    @classmethod
    async def start(
        cls, command: Sequence[str], variables: Mapping[str, str], *, owner: str
    ) -> EngineProcess:
        """Start `command`; its output, both streams, is read by `follow`.

        Raises:
            EngineError: The program is missing, or must not be run.
        """
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            # A pipe of our own: asyncio's `wait` lasts until the pipes that asyncio made are
            # closed, too, and an orphan may hold them open.
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
                    preexec_fn=_die_with_parent,
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

    async def follow(self, show: Callable[[str], None]) -> None:
        """Give each line of the engine's output to `show`, and keep the last ones in `log`."""
        async for line in self._lines():
            self.log.append(line)
            show(line)

    async def _lines(self) -> AsyncIterator[str]:
        """Lines without colours; a progress bar's every state is a line."""
        rest = b""
        while chunk := await self._output.read(65536):
            *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
            if len(rest) > _LONGEST_LINE:
                lines.append(rest)
                rest = b""
            for line in lines:
                if line.strip():
                    yield _text(line)
        if rest.strip():
            yield _text(rest)

    async def wait(self) -> int:
        """Wait for the exit of the first process; the exit code, negative for a signal."""
        return await self._process.wait()

    def members(self) -> list[psutil.Process]:
        """Return the living processes of the engine: its session's, and all that they started.

        Blocks: reads /proc of every process, and waits where one of the engine's is stuck.
        """
        found = {}
        for child in psutil.Process().children():
            if self._is_ours(child):
                for member in [child, *descendants(child)]:
                    found[member.pid] = member
        return [p for p in found.values() if alive(p)]

    def _is_ours(self, child: psutil.Process) -> bool:
        """Of this process's children, adopted ones too: started as the engine, or by it.

        A session's number tells, and where one has made a session of its own, the environment.
        """
        return session(child.pid) == self.pid or self._mark in environment(child)

    async def end(
        self, *, grace: float, hurry: Callable[[], bool], look: Callable[[], None]
    ) -> Sequence[int]:
        """End all processes: ask first, kill after `grace` seconds, or on `hurry`.

        Args:
            grace: seconds.
            hurry: whether to kill at once.
            look: called now and then while they live, in a thread.

        Returns:
            The pids of those that did not die in `KILL_SECONDS`: a process in uninterruptible
            sleep ends when its system call does.
        """
        # Each thread replaces it by a larger one: one that looks may hang while another kills.
        members: frozenset[psutil.Process] = frozenset()

        def living() -> Sequence[int]:
            nonlocal members
            members |= frozenset(self.members())
            look()
            return self._left(members)

        def kill_all() -> Sequence[int]:
            nonlocal members
            for member in members:
                kill(member)
            members |= frozenset(self.members())
            for member in members:
                kill(member)
            return self._left(members)

        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        time = asyncio.get_running_loop().time
        deadline = time() + grace
        looking: BlockingCalls[Sequence[int]] = BlockingCalls("looking", deadline=LOOK_SECONDS)
        with contextlib.suppress(HangError):
            while await looking.run(living) and time() < deadline and not hurry():
                await asyncio.sleep(0.1)
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # also where looking hangs
        deadline = time() + KILL_SECONDS
        killing: BlockingCalls[Sequence[int]] = BlockingCalls("killing", deadline=LOOK_SECONDS)
        try:
            while (left := await killing.run(kill_all)) and time() < deadline:
                await asyncio.sleep(0.02)
        except HangError:
            left = [self.pid]
        if not left:
            await self.wait()
            # A zombie with threads still has its children; they are this process's to reap now.
            with contextlib.suppress(HangError):
                await killing.run(kill_all)
        self._pipe.close()
        return left

    def _left(self, members: frozenset[psutil.Process]) -> Sequence[int]:
        """Reap the members that ended, and return the pids of the others."""
        left = [member.pid for member in members if alive(member)]
        # After the look: one that ends in between is looked at and reaped the next time.
        self._reap({member.pid for member in members}.difference(left))
        return left

    def _reap(self, ended: Set[int]) -> None:
        """Reap adopted processes that ended, also before anybody saw them; asyncio reaps the first.

        Args:
            ended: pids of processes that were seen alive.
        """
        unseen = {
            child.pid
            for child in psutil.Process().children()
            if session(child.pid) == self.pid and not alive(child)
        }
        for pid in (ended | unseen) - {self.pid}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_owned(owner: str) -> int:
    """Kill all processes of this user that `EngineProcess.start` has marked as `owner`'s.

    Returns:
        How many there were.
    """
    ended = 0
    for process in psutil.process_iter():
        if (WORKER_MARK, owner) in environment(process):
            kill(process)
            ended += 1
    return ended


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _text(line: bytes) -> str:
    return _ANSI.sub("", line.decode("utf-8", "replace")).rstrip()
