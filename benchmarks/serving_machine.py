"""The machine that a benchmark runs on: its description, and what its processes cost."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_ENGINE_TITLE = "sglang::"
_ENGINE_MODULE = "sglang.launch_server"


def describe() -> str:
    """Return a line with processor, cores, memory, versions, the revision and the load."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {cores()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, revision {_revision()}, "
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


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    return "unknown"


def refuse_left_over_engines() -> None:
    """End the program if an engine runs that this program has not started."""
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        words = process.info["cmdline"] or []
        titles = [process.info["name"] or "", *words[:1]]
        if any(title.startswith(_ENGINE_TITLE) for title in titles) or _ENGINE_MODULE in words:
            title = " ".join(words) or titles[0]  # no words: the process is ending
            found.append(f"{process.info['pid']} ({title[:60]})")
    if found:
        sys.exit(f"an engine still runs, and would disturb every figure: end {', '.join(found)}")


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
