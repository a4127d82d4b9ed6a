"""The instance number of a process, and its text form."""

from __future__ import annotations

import hashlib
import secrets
import socket
from typing import Final

# The environment variable that marks all processes of an engine with the number of their worker.
WORKER_MARK: Final = "DYNAMOMETER_WORKER"


def new_id() -> int:
    """Return a random 64-bit number that is not 0."""
    return secrets.randbits(64) or 1


def hexadecimal(instance_id: int) -> str:
    """Return the 16 hexadecimal digits for pages (`worker_id`), file names and logs."""
    return f"{instance_id:016x}"


def stable_id(name: str) -> int:
    """Return a 64-bit number that depends only on `name` and the name of this machine.

    An exporter uses the number for an engine that was started by another program.
    """
    key = f"{socket.gethostname()}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
