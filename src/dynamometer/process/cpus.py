"""The CPUs that this process may use, by its affinity and the quota of its cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dynamometer.process import cgroups


def available(root: Path = cgroups.ROOT) -> int:
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
    for directory, version in cgroups.own("cpu", root):
        yield from (_quota_v1 if version == 1 else _quota_v2)(directory)


def _quota_v2(directory: Path) -> Iterator[float]:
    quota, _, period = cgroups.text(directory / "cpu.max").partition(" ")
    yield from _cpus(quota, period or "100000")


def _quota_v1(directory: Path) -> Iterator[float]:
    yield from _cpus(
        cgroups.text(directory / "cpu.cfs_quota_us"), cgroups.text(directory / "cpu.cfs_period_us")
    )


def _cpus(quota: str, period: str) -> Iterator[float]:
    """Yield the quotient; nothing for `max` (v2), -1 (v1), or a file that is missing."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)
