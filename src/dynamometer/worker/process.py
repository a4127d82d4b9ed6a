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
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import psutil

from dynamometer.errors import EngineError

# <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None)

LOG_LINES_KEPT: Final = 400
_LONGEST_LINE: Final = 16384
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class ProcessMark(NamedTuple):
    """A process, told from a later one with the same number by when it started."""

    pid: int
    started: float


class EngineProcess:
    """A running engine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.log: deque[str] = deque(maxlen=LOG_LINES_KEPT)

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> EngineProcess:
        """Start `command`; its output, both streams, is read by `follow`.

        Raises:
            EngineError: there is no such program, or it may not be run.
        """
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise EngineError(
                f"cannot run {command[0]}: {error.strerror} (--engine-python names the "
                "interpreter that has SGLang)"
            ) from None
        return cls(process)

    async def follow(self, show: Callable[[str], None]) -> None:
        """Give each line of the engine's output to `show`, and keep the last ones in `log`."""
        async for line in self._lines():
            self.log.append(line)
            show(line)

    async def _lines(self) -> AsyncIterator[str]:
        """Lines without colours; a progress bar's every state is a line."""
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(65536):
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
        """The exit code of the first process; negative for a signal."""
        return await self._process.wait()

    def members(self) -> list[psutil.Process]:
        """All living processes of the engine: its session's, and whatever they started."""
        found = {}
        for process in psutil.Process().children(recursive=True):
            if _session(process.pid) == self.pid or process.pid == self.pid:
                for member in [process, *_descendants(process)]:
                    found[member.pid] = member
        return [p for p in found.values() if _alive(p)]

    async def end(self, *, grace: float, hurry: Callable[[], bool]) -> None:
        """End all processes: asked first, killed after `grace` seconds, or on `hurry`."""
        members = self.members()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        deadline = asyncio.get_running_loop().time() + grace
        while asyncio.get_running_loop().time() < deadline and not hurry():
            self._reap(members)
            members = list({*members, *self.members()})
            if not any(_alive(member) for member in members):
                break
            await asyncio.sleep(0.05)
        for member in members:
            _kill(member)
        while any(_alive(member) for member in members):
            self._reap(members)
            await asyncio.sleep(0.02)
        await self._process.wait()

    def _reap(self, members: Iterable[psutil.Process]) -> None:
        """Bury adopted processes; the first one is asyncio's to bury."""
        for member in members:
            if member.pid != self.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(member.pid, os.WNOHANG)


def marks(members: Iterable[psutil.Process]) -> frozenset[ProcessMark]:
    """The marks of `members`, by which a later worker knows them."""
    found = set()
    for member in members:
        with contextlib.suppress(psutil.Error):
            found.add(ProcessMark(member.pid, member.create_time()))
    return frozenset(found)


def end_marked(processes: Iterable[ProcessMark]) -> int:
    """Kill those of `processes` that still run; how many did."""
    ended = 0
    for mark in processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(mark.pid)
            if process.create_time() == mark.started and _alive(process):
                process.kill()
                ended += 1
    return ended


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


def _text(line: bytes) -> str:
    return _ANSI.sub("", line.decode("utf-8", "replace")).rstrip()
