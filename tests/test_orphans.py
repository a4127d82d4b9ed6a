"""Processes of a test run end with the run, however the run ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from processes import PYTHON, running
from stack import eventually

TESTS = Path(__file__).parent
# The shape of an engine that starts: a session of its own, and a child without an environment, as
# a process has after it changed its title. None of them ends by itself.
ENGINE = """
import os, signal, subprocess, sys
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], env={})
Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid}.")
signal.pause()
"""
RUN = f"""
import os, subprocess, sys
from pathlib import Path

def test_that_leaves_an_engine():
    engine = subprocess.Popen([sys.executable, "-c", {ENGINE!r}], start_new_session=True)
    if os.environ["WAIT"]:
        engine.wait()
    while not Path(os.environ["PIDS"]).exists():
        pass
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_no_process_outlives_a_test_run(tmp_path: Path, end: signal.Signals | None) -> None:
    pids = tmp_path / "pids"
    (tmp_path / "test_run.py").write_text(RUN)
    command = [PYTHON, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    path = ":".join([str(TESTS), *sys.path])
    variables = {"PYTHONPATH": path, "PIDS": str(pids), "WAIT": "1" if end else ""}
    with running(command, tmp_path / "log", variables) as run:
        eventually(
            lambda: pids.exists() and pids.read_text().endswith("."),
            within=30,
            what="the engine's processes",
        )
        left = [int(pid) for pid in pids.read_text().rstrip(".").split()]
        assert len(left) == 2
        try:
            if end:
                assert [pid for pid in left if psutil.pid_exists(pid)] == left
                run.signal(end)
            run.wait(within=30)
            eventually(
                lambda: not [pid for pid in left if psutil.pid_exists(pid)],
                within=10,
                what="the end of the engine's processes",
            )
        finally:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
