"""The stacks of the processes of an engine that hangs, read by py-spy, without local variables.

    <runtime directory>/stacks/<time>-<worker>.txt    mode 0600

The last ten files of each worker are kept, and at most a hundred in total, because the directory
outlives the workers. A program may read the stacks of another process of its user only
where the kernel allows it to trace that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil

from dynamometer.errors import DynamometerError
from dynamometer.process import private_directories

_FILES_OF_A_WORKER: Final = 10
_FILES_IN_TOTAL: Final = 100
_LONGEST_DUMP_BYTES: Final = 2**18
# An engine may have hundreds of processes that compile kernels.
_DUMPS_AT_ONCE: Final = 8
_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_DENIED: Final = ("permission denied", "operation not permitted")


class StacksError(DynamometerError):
    """The stacks cannot be read or written; the message has the reason."""


async def write_stacks(
    pids: Sequence[int], *, python: str, worker: str, reason: str, deadline: float
) -> Path:
    """Write the stacks of processes to a file, and return its path.

    Args:
        pids: the processes.
        python: the engine's interpreter; py-spy is installed beside it.
        worker: the id of the worker, for the name of the file.
        reason: the reason of the hang, for the beginning of the file.
        deadline: the longest time for all processes, in seconds.

    Raises:
        StacksError: py-spy is missing, no process could be read, or the file cannot be written.
    """
    program = await asyncio.to_thread(_find_program, python)
    if program is None:
        raise StacksError(f"py-spy is not installed beside {python}: install it there")
    slots = asyncio.Semaphore(_DUMPS_AT_ONCE)

    async def dump(pid: int) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(deadline), slots:
                return await _dump(program, pid)
        except TimeoutError:
            return False, f"process {pid}: py-spy did not end within {deadline:g} s"

    async with asyncio.TaskGroup() as group:
        dumping = [group.create_task(dump(pid)) for pid in pids]
    dumps = [task.result() for task in dumping]
    if not any(complete for complete, _ in dumps):
        denied = [text for _, text in dumps if any(word in text.lower() for word in _DENIED)]
        if denied:
            raise StacksError(f"this worker may not trace its engine: {tracing_hint()}")
        last = dumps[-1][1].strip().splitlines()[-1:] if dumps else ["no process"]
        raise StacksError(f"py-spy failed: {last[0] if last else 'no output'}")
    moment = datetime.now(UTC)
    text = f"{moment.isoformat(timespec='seconds')} the engine is unresponsive: {reason}\n"
    text += "".join(f"\n{one.rstrip()}\n" for _, one in dumps)
    name = f"{moment.strftime('%Y%m%dT%H%M%S.%fZ')}-{worker}.txt"
    return await asyncio.to_thread(_write, name, text, worker)


def tracing_hint() -> str:
    """Return the reason why processes of the same user cannot be traced, and the remedy."""
    try:
        scope = _YAMA.read_text().strip()
    except OSError:
        scope = "0"
    if scope == "3":
        return "kernel.yama.ptrace_scope is 3, which forbids tracing until the next boot"
    if scope == "2":
        return "kernel.yama.ptrace_scope is 2: start the worker with CAP_SYS_PTRACE"
    if scope == "1":
        return (
            "kernel.yama.ptrace_scope is 1, with which an ordinary user may trace only children "
            "of the tracing program: start the worker with CAP_SYS_PTRACE, or run "
            "sysctl kernel.yama.ptrace_scope=0"
        )
    return "start the worker with CAP_SYS_PTRACE, and the engine as the same user"


def _find_program(python: str) -> str | None:
    interpreters = (shutil.which(python), sys.executable)
    beside = [str(Path(found).with_name("py-spy")) for found in interpreters if found]
    return next((found for found in map(shutil.which, [*beside, "py-spy"]) if found), None)


async def _dump(program: str, pid: int) -> tuple[bool, str]:
    """Return the stacks of a process; False and the reason if they cannot be read."""
    title = f"process {pid}: {await asyncio.to_thread(_title, pid)}"
    command = (program, "dump", "--nonblocking", "--pid", str(pid))
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return False, f"{title}\ncannot run {program}: {error.strerror}"
    try:
        output, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    text = output[:_LONGEST_DUMP_BYTES].decode("utf-8", "replace")
    # A dump begins with the command line, which may contain keys.
    _, version, stacks = text.partition("\nPython v")
    shown = version.lstrip() + stacks if stacks else text
    return process.returncode == 0, f"{title}\n{shown}"


def _title(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        arguments = process.cmdline() or [process.name()]
        shown = arguments[:3] if arguments[1:2] == ["-m"] else arguments[:1]
        return f"{' '.join(shown)}, {process.status()}"
    except psutil.Error:
        return "ended"


def _write(name: str, text: str, worker: str) -> Path:
    try:
        directory = private_directories.create(private_directories.create_runtime() / "stacks")
        path = directory / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        _remove_oldest(directory.glob(f"*-{worker}.txt"), kept=_FILES_OF_A_WORKER)
        _remove_oldest(directory.glob("*.txt"), kept=_FILES_IN_TOTAL)
    except OSError as error:
        raise StacksError(f"cannot write {error.filename}: {error.strerror}") from None
    return path


def _remove_oldest(paths: Iterable[Path], *, kept: int) -> None:
    for path in sorted(paths, key=lambda path: path.name)[:-kept]:
        path.unlink(missing_ok=True)
