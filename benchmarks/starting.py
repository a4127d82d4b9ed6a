"""Processes that benchmarks start, and progress messages."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


@contextlib.contextmanager
def started(
    command: list[str], log: Path, variables: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process while the context is open; end it and its children after that."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | variables,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for left in family:
            with contextlib.suppress(psutil.Error):
                left.kill()
        process.kill()
        process.wait()


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)
