"""The number that names an instance."""

from __future__ import annotations

import secrets


def new_id() -> int:
    """A random 64-bit number, never 0, kept by a worker process over its engine's restarts."""
    return secrets.randbits(64) or 1


def hexadecimal(instance_id: int) -> str:
    """The form on pages (`worker_id`), in file names and in logs: 16 digits."""
    return f"{instance_id:016x}"
