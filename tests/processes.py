"""Processes that tests start, which cannot outlive the test run."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PYTHON = sys.executable
_libc = ctypes.CDLL(None)


@functools.cache
def refusing_port() -> int:
    """Return a loopback port that refuses connections: this process binds it and does not listen.

    Another process could bind a port that is only free.
    """
    bound = socket.socket()
    atexit.register(bound.close)
    bound.bind(("127.0.0.1", 0))
    number: int = bound.getsockname()[1]
    return number


def end_orphans_afterwards() -> subprocess.Popen[bytes]:
    """Start the program that ends the processes of this test run when the run has ended.

    Returns:
        The program, which acts when its standard input is closed.
    """
    mark = f"{os.getpid()}-{time.time_ns()}"
    program = Path(__file__).with_name("orphans.py")
    command = [PYTHON, str(program), f"TEST_RUN={mark}", str(os.getsid(0))]
    os.environ["TEST_RUN"] = mark
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def true_in_fork(check: Callable[[], bool], *, within: float) -> bool:
    """Return the result of `check` in a child of fork; False if the child raises or is too slow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the process has other threads
        pid = os.fork()
    if not pid:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(1)
    killer = threading.Timer(within, os.kill, (pid, signal.SIGKILL))
    killer.start()
    _, status = os.waitpid(pid, 0)
    killer.cancel()
    killer.join()
    return status == 0


class Process:
    """A process whose output goes to a file; `end` also ends the processes that it started."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log_path = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.pid = self._popen.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait_for(self, pattern: str, *, within: float) -> re.Match[str]:
        """Wait for `pattern` in the log, and return the first match."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.log):
                return match
            if not self.running:
                break
            time.sleep(0.05)
        if match := re.search(pattern, self.log):
            return match
        raise AssertionError(f"no {pattern!r} within {within} s in:\n{self.log[-4000:]}")

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, *, within: float) -> int:
        """Wait for the end of the process, and return its exit code."""
        return self._popen.wait(within)

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def end(self) -> None:
        family = self.descendants()
        if self.running:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(within=2)
        if self.running:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(within=15)
        if self.running:
            self.signal(signal.SIGKILL)
            self.wait(within=5)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[Process]:
    process = Process(command, log, environment)
    try:
        yield process
    finally:
        process.end()


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)
