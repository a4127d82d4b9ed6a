"""SGLang's load snapshots: the ranks that have no request.

SGLang updates its gauges when it logs a batch, and may leave the values of the last batch when it
becomes idle. Each data-parallel rank also writes a snapshot of its load into a file in /dev/shm,
always at the moment when it becomes idle. The format is that of SGLang 0.5.23
(`sglang/srt/managers/load_snapshot.py`):

    header: "SLNS", uint16 version, uint16 number of ranks, uint32 bytes of a slot
    a slot for each rank: uint32 length, and a MessagePack map without the values that are 0
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

_MAPPING: Final = re.compile(r" (/dev/shm/sglang_loads_\S+\.shm)$", re.MULTILINE)
_HEADER: Final = struct.Struct("<4sHHI")
_LENGTH: Final = struct.Struct("<I")
_MAGIC: Final = b"SLNS"
_VERSION: Final = 2
_LARGEST_FILE_BYTES: Final = 64 << 20
# Searching an engine's processes costs some milliseconds each.
_SEARCH_SECONDS: Final = 4.0


class _Disaggregation(msgspec.Struct, array_like=True):
    """The first members of an array; `mode` is "null" for an engine that does all of the work."""

    mode: str
    prefill_bootstrap_queue_reqs: int = 0
    prefill_inflight_queue_reqs: int = 0
    decode_prealloc_queue_reqs: int = 0
    decode_transfer_queue_reqs: int = 0
    decode_retracted_queue_reqs: int = 0

    @property
    def idle(self) -> bool:
        """True if all queues are empty."""
        return not (
            self.prefill_bootstrap_queue_reqs
            or self.prefill_inflight_queue_reqs
            or self.decode_prealloc_queue_reqs
            or self.decode_transfer_queue_reqs
            or self.decode_retracted_queue_reqs
        )


class _Snapshot(msgspec.Struct):
    """The members of a snapshot that are read; the first two are never 0."""

    timestamp: float
    max_total_num_tokens: int
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_total_tokens: int = 0  # in the KV cache, or waiting for it
    disaggregation: _Disaggregation | None = None

    @property
    def idle(self) -> bool:
        """True if the rank has no request. A request in its prefill has tokens only."""
        own = self.num_running_reqs + self.num_waiting_reqs + self.num_total_tokens
        return own == 0 and (self.disaggregation is None or self.disaggregation.idle)


_DECODER: Final = msgspec.msgpack.Decoder(_Snapshot)


class LoadSnapshots:
    """The load snapshots of one engine; one thread at a time may use them."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """Store the arguments.

        Args:
            pids: returns the processes of the engine.
        """
        self._pids = pids
        self._path: str | None = None
        self._searched_at = float("-inf")

    def idle_ranks(self) -> frozenset[str]:
        """Return the data-parallel ranks without a request, and "" if no rank has one.

        Empty if the engine writes no snapshots (another version, another machine), or if this
        process may not read them.
        """
        ranks = self._read()
        if ranks is None and time.monotonic() - self._searched_at >= _SEARCH_SECONDS:
            self._searched_at = time.monotonic()
            with suppress(OSError):
                self._path = _find(self._pids())
            ranks = self._read()
        if not ranks:
            return frozenset()
        idle = {str(rank) for rank, snapshot in enumerate(ranks) if snapshot and snapshot.idle}
        return frozenset(idle | {""} if len(idle) == len(ranks) else idle)

    def _read(self) -> list[_Snapshot | None] | None:
        """Return the snapshot of each rank, None where it is not valid; None without a file."""
        if self._path is None:
            return None
        try:
            with open(self._path, "rb", buffering=0) as file:  # noqa: PTH123  # half the time
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                content = file.read(_LARGEST_FILE_BYTES) or b""
        except BlockingIOError:
            return []  # the engine is writing, or has stopped while it was writing
        except OSError:
            self._path = None  # the process ended
            return None
        return _parse(content)


def _find(pids: Iterable[int]) -> str | None:
    """Return the path of the file that one of the processes maps.

    The path leads through the process, so that it works across containers, and ends with it.
    """
    for pid in pids:
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
            if match := _MAPPING.search(maps):
                path = f"/proc/{pid}/root{match[1]}"
                if os.access(path, os.R_OK):
                    return path
    return None


def _parse(content: bytes) -> list[_Snapshot | None]:
    """Return the snapshot of each rank; an empty list for another version of the format."""
    if len(content) < _HEADER.size:
        return []
    magic, version, ranks, slot_bytes = _HEADER.unpack_from(content)
    if magic != _MAGIC or version != _VERSION:
        return []
    begins = [_HEADER.size + rank * slot_bytes for rank in range(ranks)]
    return [_parse_slot(content[begin : begin + slot_bytes]) for begin in begins]


def _parse_slot(slot: bytes) -> _Snapshot | None:
    if len(slot) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(slot)
    try:
        return _DECODER.decode(slot[_LENGTH.size : _LENGTH.size + length])
    except msgspec.MsgspecError:
        return None  # nothing was written yet
