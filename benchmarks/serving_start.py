"""The start of each process for `make bench-serving`: processor time until it serves."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import psutil
from serving_machine import cpu_seconds
from serving_report import Results
from starting import say, started

ROUNDS: Final = 5
_ENDS_WITHIN: Final = 30.0
_MOCK: Final = ("sglang", "--engine", "mocker", "--model", "mock", "--enable-metrics")
# Each command with the text that it prints when it serves, or at its end.
_COMMANDS: Final = {
    "`dyno --help`": (("--help",), "dyno exporter"),
    "frontend until it listens": (("frontend", "--http-port", "0"), "OpenAI-compatible at"),
    "worker until its page is up": ((*_MOCK, "--system-port", "0"), "metrics and health:"),
}


def measure_start(place: Path, results: Results) -> None:
    """Start each process several times, and add the medians to `results`.

    The first start, which compiles the modules, does not count.
    """
    rows = [["process", "CPU, ms", "time, ms"]]
    # Python compiles all modules at each start if the variable is set.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for name, (words, text) in _COMMANDS.items():
        say(f"start: {name}")
        times = [_start(place, words, text) for _ in range(ROUNDS + 1)][1:]
        cpu, passed = (statistics.median(each) * 1e3 for each in zip(*times, strict=True))
        rows.append([name, f"{cpu:.0f}", f"{passed:.0f}"])
    results.start = rows


def _start(place: Path, words: tuple[str, ...], text: str) -> tuple[float, float]:
    """Return the processor time and the time until a process prints a text."""
    command = [sys.executable, "-m", "dynamometer", *words]
    with tempfile.TemporaryDirectory(dir=place) as directory:
        log = Path(directory) / "log"
        variables = {
            "DYN_FILE_KV": f"{directory}/discovery",
            "PYTHONPYCACHEPREFIX": str(place / "pycache"),
        }
        begun = time.monotonic()
        with started(command, log, variables) as process:
            watched = [psutil.Process(process.pid)]
            used = 0.0
            while text not in log.read_text(errors="replace"):
                used = max(used, cpu_seconds(watched))
                if time.monotonic() > begun + _ENDS_WITHIN:
                    sys.exit(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.002)
            return max(used, cpu_seconds(watched)), time.monotonic() - begun
