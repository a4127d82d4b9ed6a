"""Other processes: whether they live, and what they started."""

from __future__ import annotations

import psutil


def alive(process: psutil.Process) -> bool:
    """Whether it still runs: the very process, not one that got its number later."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All that it started; empty where it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []
