"""The end of a tree of processes that ignore signals or end late."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from dynamometer.errors import EngineError
from dynamometer.process.children import ProcessIdentity, alive, identities, kill_identified
from dynamometer.worker.process_tree import EngineProcess, kill_owned
from waiting import run_ready_tasks, until

TREE = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, {handler})
child = subprocess.Popen([sys.executable, "-c", {child!r}])
print("\\x1b[31mred\\x1b[0m\\rprogress 1\\rprogress 2\\n", end="", flush=True)
time.sleep(60)
"""
LATE_THREADS = """
import ctypes, os, signal, subprocess, sys, threading, time

def end(*_):
    child.kill()
    threading.Thread(target=lambda: (time.sleep(1), os._exit(0))).start()
    number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    ctypes.CDLL(None).syscall(number, 0)  # exit(2): of this thread alone

# A SIGTERM before `child` has a value waits.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
signal.signal(signal.SIGTERM, end)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


async def start(program: str) -> EngineProcess:
    return await EngineProcess.start([sys.executable, "-c", program], {}, owner="test")


@pytest.fixture
async def deaf_tree() -> AsyncIterator[EngineProcess]:
    """A process that ends at SIGTERM, with a child that does not."""
    handler = "lambda *_: sys.exit(3)"
    process = await start(TREE.format(handler=handler, child=DEAF))
    await until(lambda: len(process.members()) == 2)
    yield process
    await process.end(grace=0, kill_now=lambda: True, check=lambda: None)


async def test_all_processes_end_orphans_too_and_none_is_left_as_a_zombie(
    deaf_tree: EngineProcess,
) -> None:
    family = [psutil.Process(member.pid) for member in deaf_tree.members()]
    await deaf_tree.end(grace=1, kill_now=lambda: False, check=lambda: None)
    assert await deaf_tree.wait() == 3
    assert not [process for process in family if process.is_running()]


async def test_an_orphan_that_ends_at_the_moment_of_a_look_is_no_zombie_either(
    deaf_tree: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    psutil.Process(deaf_tree.pid).kill()
    assert await deaf_tree.wait() == -signal.SIGKILL
    (orphan,) = deaf_tree.members()

    def ends_now(process: psutil.Process) -> bool:
        if process.pid == orphan.pid:
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return alive(process)

    monkeypatch.setattr("dynamometer.worker.process_tree.alive", ends_now)
    monkeypatch.setattr(psutil.Process, "is_running", lambda _: True)
    await deaf_tree.end(grace=0, kill_now=lambda: True, check=lambda: None)
    assert not psutil.pid_exists(orphan.pid)


async def test_children_of_a_first_process_whose_threads_end_late_are_no_zombies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The main thread has ended, so the process looks like a zombie, and still has its children."""
    process = await start(LATE_THREADS)
    async with asyncio.timeout(10):
        while not (family := process.members())[1:]:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    monkeypatch.setattr("dynamometer.worker.process_tree.kill", lambda _: None)
    await process.end(grace=10, kill_now=lambda: False, check=lambda: None)
    assert [member.pid for member in family if psutil.pid_exists(member.pid)] == []


async def test_a_process_that_does_not_die_is_reported_and_not_waited_for(
    deaf_tree: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for one in uninterruptible sleep, which even SIGKILL does not end."""
    (child,) = [m for m in deaf_tree.members() if m.pid != deaf_tree.pid]
    kill = psutil.Process.kill

    def spare(process: psutil.Process) -> None:
        if process.pid != child.pid:
            kill(process)

    monkeypatch.setattr("dynamometer.worker.process_tree.KILL_SECONDS", 0.3)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "kill", spare)
        patch.setattr(os, "killpg", lambda *_: None)
        async with asyncio.timeout(5):
            left = await deaf_tree.end(grace=60, kill_now=lambda: True, check=lambda: None)
    assert left == [child.pid]


async def test_a_check_that_hangs_does_not_delay_the_end(
    deaf_tree: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc hangs where it shows the memory of a process that is stuck."""
    released = threading.Event()
    looks: list[None] = []

    def look() -> None:
        looks.append(None)
        released.wait()

    monkeypatch.setattr("dynamometer.worker.process_tree.CHECK_SECONDS", 0.1)
    async with asyncio.timeout(5):
        left = await deaf_tree.end(grace=60, kill_now=lambda: False, check=look)
    released.set()
    assert left == []
    assert len(looks) == 1


async def test_waiting_for_the_exit_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    process = await start("import time; time.sleep(60)")
    waiting = asyncio.create_task(process.wait())
    loop = asyncio.get_running_loop()
    call_at = loop.call_at
    timers: list[float] = []

    def counted(when: float, *rest: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *rest, **options)

    monkeypatch.setattr(loop, "call_at", counted)
    await run_ready_tasks()
    assert timers == []
    psutil.Process(process.pid).kill()
    assert await asyncio.wait_for(waiting, 10) == -signal.SIGKILL


async def test_kill_now_kills_without_waiting(deaf_tree: EngineProcess) -> None:
    async with asyncio.timeout(5):
        await deaf_tree.end(grace=60, kill_now=lambda: True, check=lambda: None)
    assert deaf_tree.members() == []


async def test_an_orphan_stays_in_sight(deaf_tree: EngineProcess) -> None:
    psutil.Process(deaf_tree.pid).kill()
    assert await deaf_tree.wait() == -signal.SIGKILL
    (orphan,) = deaf_tree.members()
    assert orphan.pid != deaf_tree.pid


async def test_its_log_is_read_line_by_line_without_colours(deaf_tree: EngineProcess) -> None:
    shown: list[str] = []
    following = asyncio.create_task(deaf_tree.read_log(shown.append))
    await until(lambda: len(shown) >= 3)
    following.cancel()
    assert shown == ["red", "progress 1", "progress 2"]
    assert list(deaf_tree.log) == shown


async def test_a_key_is_neither_shown_nor_in_the_reason_of_an_end() -> None:
    process = await start("print('ValueError: --api-key s3cret is wrong')")
    shown: list[str] = []
    async with asyncio.timeout(10):
        await process.read_log(shown.append, key="s3cret")
    assert shown == list(process.log) == ["ValueError: --api-key *** is wrong"]
    await process.wait()


async def test_a_log_of_odd_bytes_and_endless_lines_is_read_too() -> None:
    program = "import os; os.write(1, b'\\xff\\x00' + b'x' * 200_000 + b'\\nlast')"
    process = await start(program)
    shown: list[str] = []
    async with asyncio.timeout(10):
        await process.read_log(shown.append)
    assert shown[-1] == "last"
    assert sum(map(len, shown)) == 200_006
    assert await process.wait() == 0


async def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match=r"cannot run /no/such/python: No such file"):
        await EngineProcess.start(["/no/such/python"], {}, owner="test")


async def test_a_process_that_left_the_session_is_ended_too() -> None:
    away = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {DEAF!r}], start_new_session=True)
time.sleep(60)
"""
    process = await start(away)
    await until(lambda: len(process.members()) == 2)
    psutil.Process(process.pid).kill()
    await process.wait()
    (orphan,) = process.members()
    await process.end(grace=0, kill_now=lambda: True, check=lambda: None)
    assert not orphan.is_running()


async def test_what_a_killed_owner_left_is_found_by_its_mark() -> None:
    process = await EngineProcess.start([sys.executable, "-c", DEAF], {}, owner="some-other")
    assert kill_owned("unknown") == 0
    assert kill_owned("some-other") == 1
    assert await process.wait() == -signal.SIGKILL


async def test_a_process_that_overwrote_its_environment_is_found_by_its_session() -> None:
    """An engine that is killed while it starts leaves such a process: a title hides the mark."""
    program = f"""
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {DEAF!r}], env={{}})
os.execv(sys.executable, [sys.executable, "-c", {DEAF!r}])
"""
    process = await start(program)
    await until(lambda: len(process.members()) == 2)
    (child,) = [member for member in process.members() if member.pid != process.pid]
    assert kill_owned("test") == 2
    assert await process.wait() == -signal.SIGKILL
    await until(lambda: not alive(child))
    await process.end(grace=0, kill_now=lambda: True, check=lambda: None)


async def test_the_identity_of_a_process_does_not_change_when_the_clock_is_set(
    deaf_tree: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    (child,) = [m for m in deaf_tree.members() if m.pid != deaf_tree.pid]
    before = identities([child])
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 3600.0)
    assert identities([psutil.Process(child.pid)]) == before
    assert kill_identified(before) == 1


async def test_only_the_process_that_was_marked_is_ended(deaf_tree: EngineProcess) -> None:
    (child,) = [m for m in deaf_tree.members() if m.pid != deaf_tree.pid]
    (identity,) = identities([child])
    assert kill_identified([ProcessIdentity(identity.pid, f"1{identity.start}")]) == 0
    assert child.is_running()
    assert kill_identified([identity]) == 1
    assert kill_identified([ProcessIdentity(2**22 + 1, "")]) == 0
