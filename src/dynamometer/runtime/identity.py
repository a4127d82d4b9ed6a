"""The instance number of a process, and its text form."""

from __future__ import annotations

import hashlib
import re
import secrets
import socket
from typing import Final

# The environment variable that marks all processes of an engine with their worker.
WORKER_MARK: Final = "DYNAMOMETER_WORKER"
_MOST_DIGITS: Final = 100  # more than any number in the range needs


def new_id() -> int:
    """Return a random 64-bit number that is not 0."""
    return secrets.randbits(64) or 1


def hexadecimal(instance_id: int) -> str:
    """Return the 16 hexadecimal digits for pages (`worker_id`), file names and logs."""
    return f"{instance_id:016x}"


def parse_id(text: str) -> int:
    """Return the instance number that a user gives, from 1 to 2^64 - 1.

    `text` is a whole number, a hexadecimal number with `0x`, or the 16 hexadecimal digits of
    `hexadecimal`. Any other text, such as the name of a pod, is hashed: the number depends on the
    text alone.

    Raises:
        ValueError: The number is outside the range, or the text cannot be a name.
    """
    text = text.strip()
    if re.fullmatch(r"(0x)?[0-9a-f]{16}", text, re.IGNORECASE | re.ASCII):
        number = int(text, 16)
    elif re.fullmatch(r"[+-]?(0x[0-9a-f]+|[0-9]+)", text, re.IGNORECASE | re.ASCII):
        # `int` refuses thousands of digits.
        number = int(text, 16 if "x" in text.lower() else 10) if len(text) <= _MOST_DIGITS else 0
    elif not text or not text.isprintable():
        raise ValueError("must be a number or a name of printable characters")
    elif "$" in text:
        # Kubernetes passes `$(POD_NAME)` unchanged if the variable is not defined: then all pods
        # would have the same number.
        raise ValueError("has a variable that was not replaced")
    else:
        number = _hash(text) or 1
    if not 1 <= number < 2**64:
        raise ValueError("must be a number from 1 to 18446744073709551615, or a name")
    return number


def stable_id(name: str) -> int:
    """Return a 64-bit number that depends only on `name` and the name of this machine.

    An exporter uses the number for an engine that was started by another program.
    """
    return _hash(f"{socket.gethostname()}/{name}")


def _hash(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
