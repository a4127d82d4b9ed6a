"""Processes that write multiprocess files with prometheus_client, and end.

Run as a program it forks a process for each one that is asked for: JSON lines in, pids out.
A process is a list of metrics: type, name, help text, label names, gauge mode, and values by
label values; `+` counts up, `=` sets, `o` observes.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Written:
    """One metric of a process."""

    type: str
    name: str
    documentation: str = "A text."
    mode: str = "all"
    labels: Sequence[str] = ()
    actions: Sequence[tuple[Sequence[str], str, float]] = field(default_factory=list)
    buckets: Sequence[float] = (0.5, 1.0, 8.0)


class _Program:
    """This file, running."""

    def __init__(self) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": os.devnull}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        atexit.register(self._close)

    def order(self, order: Mapping[str, object]) -> str:
        """Let a process do something, and its pid once it has ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer, "the program has ended"
        assert not answer.startswith("failed"), answer
        return answer

    def _close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@cache
def _program() -> _Program:
    return _Program()


def write_process(directory: Path, metrics: Sequence[Written], *, pid: str = "") -> str:
    """Let a process write these metrics into a directory and end; its pid.

    Args:
        directory: where its files are.
        metrics: what it writes.
        pid: what it takes for its pid; its own if empty.
    """
    return _program().order(
        {"directory": str(directory), "metrics": [asdict(m) for m in metrics], "pid": pid}
    )


def _write(order: dict[str, Any]) -> None:
    """In the forked process: write everything, and leave the files behind."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, values

    os.environ["PROMETHEUS_MULTIPROC_DIR"] = order["directory"]
    if order["pid"]:
        identifier = order["pid"]
        vars(values)["ValueClass"] = values.MultiProcessValue(lambda: identifier)
    registry = CollectorRegistry()
    classes = {"counter": Counter, "gauge": Gauge, "histogram": Histogram, "summary": Summary}
    for metric in order["metrics"]:
        options: dict[str, Any] = {"registry": registry}
        if metric["type"] == "gauge":
            options["multiprocess_mode"] = metric["mode"]
        if metric["type"] == "histogram":
            options["buckets"] = metric["buckets"]
        instrument = classes[metric["type"]](
            metric["name"], metric["documentation"], metric["labels"], **options
        )
        for label_values, action, value in metric["actions"]:
            child = instrument.labels(*label_values) if label_values else instrument
            getattr(child, {"+": "inc", "=": "set", "o": "observe"}[action])(value)


def main() -> None:
    """Serve orders until the input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _write(order)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        print(f"failed: {status}" if status else order["pid"] or pid, flush=True)


if __name__ == "__main__":
    main()
