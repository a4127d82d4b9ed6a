"""Processes that write multiprocess files with prometheus_client, and end.

Run as a program it forks a process for each one that is asked for: JSON lines in, pids out.
A process is a list of metrics: type, name, help text, label names, gauge mode, and values by
label values; `+` counts up, `=` sets, `o` observes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Written:
    """One metric of a process."""

    type: str
    name: str
    documentation: str = "What it is."
    mode: str = "all"
    labels: Sequence[str] = ()
    actions: Sequence[tuple[Sequence[str], str, float]] = field(default_factory=list)
    buckets: Sequence[float] = (0.5, 1.0, 8.0)


class Writer:
    """The program, as a test uses it."""

    def __init__(self) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": os.devnull}
        self._program = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def process(self, directory: Path, metrics: Sequence[Written], *, pid: str = "") -> str:
        """Let a process write these metrics into a directory and end; its pid.

        Args:
            directory: where its files are.
            metrics: what it writes.
            pid: what it takes for its pid; its own if empty.
        """
        assert self._program.stdin
        assert self._program.stdout
        order = {"directory": str(directory), "metrics": [asdict(m) for m in metrics], "pid": pid}
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        answer = self._program.stdout.readline().strip()
        assert not answer.startswith("failed"), answer
        return answer

    def close(self) -> None:
        """End the program."""
        assert self._program.stdin
        assert self._program.stdout
        self._program.stdin.close()
        self._program.wait(10)
        self._program.stdout.close()


def write(order: dict) -> None:
    """In the forked process: write everything, and leave the files behind."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, values

    os.environ["PROMETHEUS_MULTIPROC_DIR"] = order["directory"]
    if order["pid"]:
        from prometheus_client import metrics

        identifier = order["pid"]
        values.ValueClass = metrics.values.ValueClass = values.MultiProcessValue(lambda: identifier)
    registry = CollectorRegistry()
    classes = {"counter": Counter, "gauge": Gauge, "histogram": Histogram, "summary": Summary}
    for metric in order["metrics"]:
        options = {"registry": registry}
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
                write(order)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        print(f"failed: {status}" if status else order["pid"] or pid, flush=True)


if __name__ == "__main__":
    main()
