"""The number that names an instance."""

from __future__ import annotations

import hashlib
import secrets
import socket
from typing import Final

# The environment variable that tells whose engine a process is.
WORKER_MARK: Final = "DYNAMOMETER_WORKER"


def new_id() -> int:
    """A random 64-bit number, never 0, kept by a worker process over its engine's restarts."""
    return secrets.randbits(64) or 1


def hexadecimal(instance_id: int) -> str:
    """The form on pages (`worker_id`), in file names and in logs: 16 digits."""
    return f"{instance_id:016x}"


def stable_id(name: str) -> int:
    """A 64-bit number that is the same whenever this machine asks for it by this name.

    For what is not ours to give a random number to, once and for all.
    """
    place = f"{socket.gethostname()}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big")
