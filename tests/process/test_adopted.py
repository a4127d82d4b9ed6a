"""Orphans that a process adopts are reaped and cannot end it; its own children are unaffected."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, ctypes, os, signal, subprocess, sys
import psutil
from dynamometer.process import adopted, event_loop

adopted.CHECK_SECONDS = 0.05
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

def zombies():
    return [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE]

async def orphan():
    # The shell ends at once, and its child later.
    words = ("sh", "-c", "sleep 1 >/dev/null & echo $!")
    shell = await asyncio.create_subprocess_exec(*words, stdout=-1)
    output = await shell.stdout.readline()
    await shell.wait()
    found = psutil.Process(int(output))
    assert found.ppid() == os.getpid()
    return found

async def own_children():
    for number in range(30):
        child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}")
        assert await child.wait() == number
        done = await asyncio.to_thread(subprocess.run, ["sh", "-c", f"exit {number}"])
        assert done.returncode == number

async def receive_sigquit():
    os.kill(os.getpid(), signal.SIGQUIT)
    child = await asyncio.create_subprocess_exec("sh", "-c", "kill -QUIT $$")
    assert await child.wait() == -signal.SIGQUIT  # children do not ignore the signal

async def main():
    await receive_sigquit()
    orphans = [await orphan() for _ in range(20)]
    await own_children()
    async with asyncio.timeout(20):
        while any(orphan.is_running() for orphan in orphans):
            await asyncio.sleep(0.02)
    assert not zombies()

event_loop.run(main(), use_uvloop=sys.argv[1] == "uvloop", adopts=True)
print("reaped")
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_orphans_are_reaped_and_own_children_keep_their_exit_codes(loop: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, loop],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "reaped\n", done.stderr
