"""The CPUs that this process may use, by its affinity and the quota of its cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/")


def available(root: Path = _ROOT) -> int:
    """Return the number of CPUs that this process may keep busy, at least 1.

    A quota of 2.5 CPUs counts as 2.

    Args:
        root: the directory that contains `proc` and `sys`.
    """
    return max(1, int(min([float(_affinity()), *_quotas(root)])))


def _affinity() -> int:
    return len(os.sched_getaffinity(0))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quota of each cgroup of this process, and of the cgroups above, in CPUs."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for directory in _upwards(mounts, path):
                yield from _quota_v2(directory)
        elif "cpu" in controllers.split(","):
            for mount in dict.fromkeys((controllers, "cpu")):
                for directory in _upwards(mounts / mount, path):
                    yield from _quota_v1(directory)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the directory of a cgroup, and those above it up to the mount point.

    In a container, the path may be of the machine's tree and missing here: then the mount point
    itself is the container's cgroup.
    """
    relative = PurePosixPath(path.lstrip("/"))
    if ".." in relative.parts:  # a cgroup outside this cgroup namespace
        relative = PurePosixPath()
    for part in (relative, *relative.parents):
        yield mount / part


def _quota_v2(directory: Path) -> Iterator[float]:
    quota, _, period = _text(directory / "cpu.max").partition(" ")
    yield from _cpus(quota, period or "100000")


def _quota_v1(directory: Path) -> Iterator[float]:
    yield from _cpus(_text(directory / "cpu.cfs_quota_us"), _text(directory / "cpu.cfs_period_us"))


def _cpus(quota: str, period: str) -> Iterator[float]:
    """Yield the quotient; nothing for `max` (v2), -1 (v1), or a file that is missing."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""
