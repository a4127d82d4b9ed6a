"""The machine that a benchmark runs on: its description, and what its processes cost."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import psutil

_ENGINE_TITLE = "sglang::"
_ENGINE_MODULES = frozenset({"sglang.launch_server", "dynamometer.mocker"})
_COMMANDS = frozenset({"dyno", "dynamometer", "dynamometer.cli"})


def describe() -> str:
    """Return a line with processor, cores, memory, versions, the revision and the load."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {cores()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, revision {revision()}, "
        f"load {os.getloadavg()[0]:.1f} at the start, {time.strftime('%Y-%m-%d')}"
    )


def cores() -> int:
    """Return the number of cores that this process may use, with the quota of its cgroup."""
    available = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        if quota != "max":
            available = min(available, max(1, round(int(quota) / int(period))))
    return available


def revision(place: Path = Path(__file__).parent) -> str:
    """Return the commit of a working tree; if it is not on `main`, the last one that is.

    Args:
        place: a directory in the working tree.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = _git(place, "rev-parse", "HEAD")
        with contextlib.suppress(subprocess.SubprocessError):  # a clone without `main`
            head = _git(place, "merge-base", head, "main")
        changes = " with local changes" if _git(place, "diff", "--name-only", head) else ""
        return head[:9] + changes
    return "unknown"


def _git(place: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=place, capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout.strip()


def refuse_left_over_engines() -> None:
    """End the program if an engine runs, simulated or real; called before the first one starts."""
    if found := left_over_engines():
        sys.exit(f"an engine still runs, and would disturb every figure: end {', '.join(found)}")


def left_over_engines() -> list[str]:
    """Return the pid and the command of each engine that runs; its own processes are omitted."""
    found = {
        process.pid: process
        for process in psutil.process_iter(["ppid", "name", "cmdline"])
        if _is_engine(process.info["name"] or "", process.info["cmdline"] or [])
    }
    return [
        f"{pid} ({_title(process)})"
        for pid, process in found.items()
        if process.info["ppid"] not in found
    ]


def _is_engine(name: str, words: list[str]) -> bool:
    return (
        any(title.startswith(_ENGINE_TITLE) for title in (name, *words[:1]))
        or not _ENGINE_MODULES.isdisjoint(words)
        or any(Path(one).name in _COMMANDS and two == "mocker" for one, two in pairwise(words))
    )


def _title(process: psutil.Process) -> str:
    # An engine that sets its title pads its command line; without words, the process is ending.
    first, *words = " ".join(process.info["cmdline"] or []).split() or [process.info["name"]]
    return " ".join([first if _ENGINE_TITLE in first else Path(first).name, *words])[:60].strip()


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the processor time of processes, with all of their threads."""
    return sum(map(_cpu_seconds, processes))


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        # The clock of a process has nanoseconds, /proc only ticks of 10 ms: see
        # clock_getcpuclockid(3), which Python does not have.
        return time.clock_gettime((~process.pid << 3) | 2)
    except OSError:
        with contextlib.suppress(psutil.Error):
            return sum(process.cpu_times()[:2])
        return 0.0


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the resident memory of processes, pages that they share counted for each."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total
