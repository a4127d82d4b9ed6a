"""Commands as process 1 of a container: signals end them, and they reap orphans."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from processes import PYTHON, Process, running
from stack import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="creates a pid namespace")
WORKER = ("sglang", "--engine", "mocker", "--model", "mock")
COMMANDS = {
    "worker": (WORKER, r"ready after"),
    "frontend": (("frontend", "--http-port", "0"), r"OpenAI-compatible at"),
    "frontends": (("frontend", "--http-port", "0", "--processes", "2"), r"2 processes"),
    "mocker": (("mocker", "--port", "0", "--processes", "2"), r"serving mock"),
    "exporter": (("exporter", "--engine-url", "http://127.0.0.1:9"), r"metrics and health"),
}


@contextlib.contextmanager
def first_process(directory: Path, *words: str) -> Iterator[tuple[Process, psutil.Process]]:
    """Run a command as process 1; yield `unshare` and the command itself."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*unshare, PYTHON, "-m", "dynamometer.cli", *words]
    environment = {"DYN_FILE_KV": str(directory / "discovery"), "DYN_SYSTEM_PORT": "0"}
    with running(command, directory / "log", environment) as outer:
        eventually(lambda: psutil.Process(outer.pid).children(), within=5, what="started")
        (inner,) = psutil.Process(outer.pid).children()
        yield outer, inner


def test_process_1_reaps_orphans_and_ends_at_sigterm(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        started = []
        for name, (words, _) in COMMANDS.items():
            (tmp_path / name).mkdir()
            started.append(stack.enter_context(first_process(tmp_path / name, *words)))
        orphans = []
        for (outer, inner), (_, pattern) in zip(started, COMMANDS.values(), strict=True):
            outer.wait_for(pattern, within=20)
            orphans += adopted_by(inner)
        assert len(orphans) == 3 * len(COMMANDS)
        eventually(
            lambda: not [orphan for orphan in orphans if orphan.is_running()],
            within=15,
            what="all orphans are reaped",
        )
        _, mocker = started[list(COMMANDS).index("mocker")]
        assert len(mocker.children()) >= 3  # two ranks, and Python's resource tracker
        for outer, inner in started:
            os.kill(inner.pid, signal.SIGTERM)
            assert outer.wait(within=15) == 0
            assert "Traceback" not in outer.log


def adopted_by(first: psutil.Process) -> list[psutil.Process]:
    """Create orphans as `kubectl exec` does: the shell ends, and its children remain."""
    before = set(first.children())
    enter = ["nsenter", "--target", str(first.pid), "--pid", "--mount"]
    subprocess.run([*enter, "sh", "-c", "for i in 1 2 3; do sleep 0.5 & done"], check=True)
    return [child for child in first.children() if child not in before]


def test_process_1_ends_at_sigterm_while_it_imports_its_modules(tmp_path: Path) -> None:
    # The module prints a line before it takes long.
    (tmp_path / "slow.py").write_text(
        "import sys, time\nfrom dynamometer import cli\n"
        "cli.COMMANDS['slow'] = ('slow', '')\n"
        "if __name__ == '__main__':\n    cli.run('slow', [])\n"
        "print('importing', flush=True)\ntime.sleep(60)\n"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*unshare, PYTHON, str(tmp_path / "slow.py")]
    with running(command, tmp_path / "log", {}) as outer:
        outer.wait_for("importing", within=10)
        (inner,) = psutil.Process(outer.pid).children()
        os.kill(inner.pid, signal.SIGTERM)
        assert outer.wait(within=5) == 128 + signal.SIGTERM
        assert "Traceback" not in outer.log


def test_other_processes_have_the_default_handler() -> None:
    code = "import signal; from dynamometer import cli; cli._end_at_signal_as_first_process(); "
    code += "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
