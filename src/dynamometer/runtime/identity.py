"""The instance number of a process, and its forms."""

from __future__ import annotations

import hashlib
import secrets
import socket
from typing import Final

# The environment variable that marks the processes of a worker's engine with the worker's number.
WORKER_MARK: Final = "DYNAMOMETER_WORKER"


def new_id() -> int:
    """Return a random 64-bit number that is not 0; a worker keeps it when its engine restarts."""
    return secrets.randbits(64) or 1


def hexadecimal(instance_id: int) -> str:
    """Return the form on pages (`worker_id`), in file names and in logs: 16 digits."""
    return f"{instance_id:016x}"


def stable_id(name: str) -> int:
    """Return a 64-bit number that depends only on `name` and the name of this machine.

    An exporter numbers engines that it did not start.
    """
    place = f"{socket.gethostname()}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big")
