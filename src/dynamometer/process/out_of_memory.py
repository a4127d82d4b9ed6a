"""The number of processes that the kernel killed because memory ran out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from dynamometer.process import cgroups

# Lines of memory.events (v2), memory.oom_control (v1) and /proc/vmstat.
_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_FILES: Final = {1: "memory.oom_control", 2: "memory.events"}


def kills(root: Path = cgroups.ROOT) -> int:
    """Return the number of kills in the cgroup of this process since the cgroup was created.

    A process without a cgroup for memory, such as one of a machine without containers, gets the
    number of the whole machine since its start.

    Args:
        root: the directory that contains `proc` and `sys`.
    """
    files = [directory / _FILES[version] for directory, version in cgroups.own("memory", root)]
    for file in [*files, root / "proc/vmstat"]:
        if match := _KILLS.search(cgroups.text(file)):
            return int(match[1])
    return 0
