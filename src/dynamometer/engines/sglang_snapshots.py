"""SGLang's load snapshots: the ranks that have no request, and the queues of prefill and decode.

SGLang updates its gauges when it logs a batch, and may leave the values of the last batch when it
becomes idle, or when all of its requests wait for the KV cache of another worker, or for a worker
that takes theirs. Each data-parallel rank also writes a snapshot of its load into a file in
/dev/shm: at the end of a batch, at the moment when it becomes idle, and every 50 ms while requests
wait without a batch. The format is that of SGLang 0.5.23
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dynamometer.engines import messagepack
from dynamometer.engines.sglang_names import sglang
from dynamometer.runtime.record import DECODE, PREFILL

_MAPPING: Final = re.compile(r" (/dev/shm/sglang_loads_\S+\.shm)$", re.MULTILINE)
_HEADER: Final = struct.Struct("<4sHHI")
_LENGTH: Final = struct.Struct("<I")
_MAGIC: Final = b"SLNS"
_VERSION: Final = 2
_LARGEST_FILE_BYTES: Final = 64 << 20
# Searching an engine's processes costs some milliseconds each.
_SEARCH_SECONDS: Final = 4.0


# The members of a snapshot that every version of SGLang since 0.5.23 writes; they are never 0.
_ESSENTIAL: Final = ("timestamp", "max_total_num_tokens")
# A request in its prefill has tokens only.
_RUNNING: Final = "num_running_reqs"
_WAITING: Final = "num_waiting_reqs"
_LOAD: Final = (_RUNNING, _WAITING, "num_total_tokens")
# The array of prefill and decode: the mode, and the lengths of five queues.
_DISAGGREGATION: Final = "disaggregation"
_QUEUES: Final = slice(1, 6)


@dataclass(frozen=True)
class RankLoads:
    """The loads of all data-parallel ranks at one moment.

    Attributes:
        ranks: the snapshot of each rank.
    """

    ranks: Sequence[messagepack.Value] = ()

    def idle_ranks(self) -> frozenset[str]:
        """Return the data-parallel ranks without a request, and "" if no rank has one."""
        idle = {str(rank) for rank, snapshot in enumerate(self.ranks) if _idle(snapshot)}
        return frozenset(idle | {""} if idle and len(idle) == len(self.ranks) else idle)

    def queues(self) -> Mapping[str, Mapping[str, float]]:
        """Return the values of gauges of prefill or decode, by rank and name.

        A rank without a valid snapshot, or of an engine that is neither, has no values.
        """
        found = {str(rank): _queues(snapshot) for rank, snapshot in enumerate(self.ranks)}
        return {rank: values for rank, values in found.items() if values}


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

    def read(self) -> RankLoads:
        """Return the present loads.

        Without ranks if the engine writes no snapshots (another version, another machine), or if
        this process may not read them.
        """
        ranks = self._read()
        if ranks is None and time.monotonic() - self._searched_at >= _SEARCH_SECONDS:
            self._searched_at = time.monotonic()
            with suppress(OSError):
                self._path = _find(self._pids())
            ranks = self._read()
        return RankLoads(ranks or ())

    def _read(self) -> list[messagepack.Value] | None:
        """Return the snapshot of each rank; None without a file."""
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


def _parse(content: bytes) -> list[messagepack.Value]:
    """Return the snapshot of each rank; an empty list for another version of the format."""
    if len(content) < _HEADER.size:
        return []
    magic, version, ranks, slot_bytes = _HEADER.unpack_from(content)
    if magic != _MAGIC or version != _VERSION:
        return []
    begins = [_HEADER.size + rank * slot_bytes for rank in range(ranks)]
    return [_parse_slot(content[begin : begin + slot_bytes]) for begin in begins]


def _parse_slot(slot: bytes) -> messagepack.Value:
    """Return the snapshot in a slot; None if the slot has no valid one."""
    if len(slot) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(slot)
    try:
        return messagepack.decode(slot[_LENGTH.size : _LENGTH.size + length])
    except ValueError:
        return None  # nothing was written yet


def _idle(snapshot: messagepack.Value) -> bool:
    """Return whether a snapshot shows that its rank has no request."""
    if not isinstance(snapshot, dict) or not all(map(snapshot.get, _ESSENTIAL)):
        return False
    queues = snapshot.get(_DISAGGREGATION)
    waiting = isinstance(queues, list) and any(queues[_QUEUES])
    return not waiting and not any(map(snapshot.get, _LOAD))


def _queues(snapshot: messagepack.Value) -> Mapping[str, float]:
    """Return the values of gauges that a snapshot of prefill or decode has.

    The waiting requests of a snapshot include those in the other queues, except the queue of
    requests whose KV cache a prefill worker sends. Decode's waiting requests include the retracted
    ones, which no gauge has.
    """
    if not isinstance(snapshot, dict) or not all(map(snapshot.get, _ESSENTIAL)):
        return {}
    array = snapshot.get(_DISAGGREGATION)
    counts = [snapshot.get(_RUNNING, 0), snapshot.get(_WAITING, 0)]
    if not isinstance(array, list) or len(array) < _QUEUES.stop:
        return {}
    numbers = [value for value in (*counts, *array[_QUEUES]) if isinstance(value, int | float)]
    if len(numbers) != len(counts) + _QUEUES.stop - _QUEUES.start:
        return {}
    running, waiting, bootstrap, inflight, prealloc, transfer, _ = numbers
    if array[0] == PREFILL:
        return {
            sglang.NUM_QUEUE_REQS: max(0, waiting - bootstrap),
            sglang.NUM_PREFILL_BOOTSTRAP_QUEUE_REQS: bootstrap,
            sglang.NUM_PREFILL_INFLIGHT_QUEUE_REQS: inflight,
        }
    if array[0] == DECODE:
        return {
            sglang.NUM_RUNNING_REQS: running,
            sglang.NUM_QUEUE_REQS: max(0, waiting - prealloc - transfer),
            sglang.NUM_DECODE_PREALLOC_QUEUE_REQS: prealloc,
            sglang.NUM_DECODE_TRANSFER_QUEUE_REQS: transfer,
        }
    return {}
