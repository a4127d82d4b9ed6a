"""The life of engines that do not end after SIGTERM, or not at all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
import pytest

from dynamometer.engines.interface import Launch
from dynamometer.engines.mocker import Mocker
from dynamometer.http import aiohttp_adapter
from dynamometer.runtime.identity import new_id
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.run_directory import run_directory
from dynamometer.worker.supervisor import END_GRACE_SECONDS, Supervisor
from waiting import until

UNDEAD = """
import asyncio, os, pathlib, sys
from unittest import mock
import psutil
from dynamometer import logs
from dynamometer.engines.interface import Launch
from dynamometer.engines.mocker import Mocker
from dynamometer.http import aiohttp_adapter
from dynamometer.process import event_loop
from dynamometer.worker import process_tree
from dynamometer.worker.engine_client import EngineClient
from dynamometer.worker.run_directory import run_directory
from dynamometer.worker.supervisor import Supervisor

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"

async def main(directory):
    launch = Launch(
        command=[sys.executable, "-c", DEAF], environment=dict(os.environ),
        url="http://127.0.0.1:9", model="m", model_path="m",
    )
    async with aiohttp_adapter.session(keepalive_seconds=None) as session:
        client = EngineClient(session, Mocker(), launch)
        supervisor = Supervisor(Mocker(), launch, client, directory)
        async with supervisor.running(mock.AsyncMock(), lambda: True):
            (child,) = psutil.Process().children()
            status = pathlib.Path(f"/proc/{child.pid}/status")
            while not int(status.read_text().split("SigIgn:")[1].split()[0], 16) & 1 << 14:
                await asyncio.sleep(0.01)  # until it ignores SIGTERM
            print(child.pid, flush=True)

logs.set_up("worker", level="info", as_json=False)
process_tree.KILL_SECONDS = 0.3
with run_directory(7) as directory:
    with mock.patch("psutil.Process.kill"), mock.patch("os.killpg"):
        event_loop.run(main(directory))
logs.flush()
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_worker_names_the_processes_that_do_not_die_and_ends(loop: str) -> None:
    """The test replaces a process in uninterruptible sleep by one that is not killed."""
    script = UNDEAD.replace("main(directory))", f"main(directory), use_uvloop={loop == 'uvloop'})")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    pid = done.stdout.strip()
    assert f"processes of the engine did not end and keep running: {pid}" in done.stderr


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def engines() -> list[psutil.Process]:
    """Return the child of this process that runs `DEAF`, once it ignores SIGTERM."""
    alive = [child for child in psutil.Process().children() if child.status() != "zombie"]
    found = [child for child in alive if DEAF in child.cmdline()]
    return [child for child in found if _ignores_sigterm(child.pid)]


def _ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return bool(int(status.split("SigIgn:")[1].split()[0], 16) & 1 << 14)


async def test_a_node_that_waits_for_the_end_of_node_0_is_killed_at_once() -> None:
    launch = Launch(
        command=[sys.executable, "-c", DEAF],
        environment=dict(os.environ),
        url="http://127.0.0.1:9",
        model="m",
        model_path="m",
        nodes=2,
        node_rank=1,
    )
    session = aiohttp_adapter.session(keepalive_seconds=None)
    with run_directory(new_id()) as directory:
        async with session, asyncio.timeout(30):
            client = EngineClient(session, Mocker(), launch)
            supervisor = Supervisor(Mocker(), launch, client, directory)
            async with supervisor.running(mock.AsyncMock(), lambda: False):
                await until(lambda: bool(engines()))
                (child,) = engines()
                ending_at = time.monotonic()
            assert time.monotonic() - ending_at < END_GRACE_SECONDS / 2
            assert not child.is_running()
