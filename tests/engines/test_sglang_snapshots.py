"""A rank without requests has no load, whatever its gauges show."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from test_load_signals import CONSTANT, page, shown

from dynamometer.engines.load_signals import EngineLoad
from dynamometer.engines.sglang_snapshots import LoadSnapshots

SLOT = 16 * 1024
NO_QUEUES = ["null", 0, 0, 0, 0, 0, 0.0, 0.0]
IDLE: dict[str, object] = {
    "timestamp": 1.0,
    "max_total_num_tokens": 8192,
    "disaggregation": NO_QUEUES,
}
# A process that maps a file, as a scheduler does.
MAPS = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
    print(flush=True)
    sys.stdin.read()
"""
BUSY_GAUGES = (
    'num_running_reqs{dp_rank="0"} 8',
    'num_running_reqs{dp_rank="1"} 3',
    'num_queue_reqs{dp_rank="0"} 6',
    'num_queue_reqs{dp_rank="1"} 0',
    'token_usage{dp_rank="0"} 0.75',
    'token_usage{dp_rank="1"} 0.25',
)


class Engine:
    """A process that maps a file of load snapshots."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_bytes(bytes(SLOT))
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAPS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout
        self.process.stdout.readline()

    def write(self, *ranks: Mapping[str, object] | bytes, version: int = 2) -> None:
        content = struct.pack("<4sHHI", b"SLNS", version, len(ranks), SLOT)
        for rank in ranks:
            payload = rank if isinstance(rank, bytes) else msgspec.msgpack.encode(rank)
            content += (struct.pack("<I", len(payload)) + payload).ljust(SLOT, b"\0")
        self.path.write_bytes(content)

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    found = Engine(Path(f"/dev/shm/sglang_loads_test_{os.getpid()}.shm"))
    try:
        yield found
    finally:
        found.end()
        found.path.unlink()


def idle_ranks(engine: Engine) -> frozenset[str]:
    return LoadSnapshots(lambda: [os.getpid(), engine.process.pid]).idle_ranks()


def test_a_rank_without_requests_is_idle(engine: Engine) -> None:
    engine.write(IDLE, IDLE | {"num_running_reqs": 1, "num_total_tokens": 5})
    assert idle_ranks(engine) == {"0"}
    engine.write(IDLE, IDLE)
    assert idle_ranks(engine) == {"0", "1", ""}


@pytest.mark.parametrize(
    "work",
    [
        {"num_running_reqs": 1},
        {"num_waiting_reqs": 1},
        {"num_total_tokens": 300},  # a first prefill, or a session
        {"disaggregation": ["prefill", 0, 1, 0, 0, 0, 0.0, 0.0]},
        {"disaggregation": ["decode", 0, 0, 0, 0, 1, 0.0, 0.0]},
    ],
    ids=str,
)
def test_a_rank_with_work_is_not_idle(engine: Engine, work: dict[str, object]) -> None:
    engine.write(IDLE | work)
    assert not idle_ranks(engine)


@pytest.mark.parametrize(
    "rank",
    [
        {},  # before the first batch
        {"timestamp": 1.0},  # a version that renames members
        b"",
        b"\xff\xff",
        b"\x81" * SLOT,
    ],
    ids=["started", "renamed", "empty", "invalid", "truncated"],
)
def test_a_snapshot_that_cannot_be_read_is_not_idle(
    engine: Engine, rank: Mapping[str, object] | bytes
) -> None:
    engine.write(IDLE, rank)
    assert idle_ranks(engine) == {"0"}


def test_another_version_of_the_format_is_not_read(engine: Engine) -> None:
    engine.write(IDLE, version=3)
    assert not idle_ranks(engine)
    engine.path.write_bytes(b"SL")
    assert not idle_ranks(engine)


def test_a_locked_file_is_not_waited_for(engine: Engine) -> None:
    engine.write(IDLE)
    with engine.path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not idle_ranks(engine)


def test_an_ended_engine_is_not_idle(engine: Engine) -> None:
    engine.write(IDLE)
    snapshots = LoadSnapshots(lambda: [engine.process.pid])
    assert snapshots.idle_ranks() == {"0", ""}
    engine.end()
    assert not snapshots.idle_ranks()


def test_stale_gauges_of_an_idle_rank_are_no_load(engine: Engine) -> None:
    load = EngineLoad("sglang", lambda: CONSTANT, component=True, pids=lambda: [engine.process.pid])
    gauges = page(*BUSY_GAUGES)
    engine.write(IDLE | {"num_running_reqs": 8}, IDLE | {"num_running_reqs": 3})
    busy = shown(load.families(gauges))
    assert (busy["running_requests"], busy["queued_requests"]) == (11, 6)
    assert busy["kv_usage_ratio"] == 0.5
    engine.write(IDLE, IDLE | {"num_running_reqs": 3})
    one_idle = shown(load.families(gauges))
    assert (one_idle["running_requests"], one_idle["queued_requests"]) == (3, 0)
    assert one_idle["kv_usage_ratio"] == 0.125
    assert one_idle["gpu_cache_usage_percent/0"] == 0
    engine.write(IDLE, IDLE)
    idle = load.families(gauges)
    assert shown(idle)["running_requests"] == shown(idle)["kv_usage_ratio"] == 0
    assert load.families(gauges) is idle


def test_stale_gauges_of_an_idle_rank_are_not_its_load(engine: Engine) -> None:
    load = EngineLoad("sglang", lambda: CONSTANT, ranks=True, pids=lambda: [engine.process.pid])
    engine.write(IDLE, IDLE | {"num_running_reqs": 3})
    found = shown(load.families(page(*BUSY_GAUGES)))
    assert (found["rank_running_requests/0"], found["rank_running_requests/1"]) == (0, 3)
    assert (found["rank_kv_usage_ratio/0"], found["rank_kv_usage_ratio/1"]) == (0, 0.25)


def test_gauges_without_ranks_are_stale_only_if_all_ranks_are_idle(engine: Engine) -> None:
    load = EngineLoad("sglang", dict, pids=lambda: [engine.process.pid])
    gauges = page("num_running_reqs{} 4")
    engine.write(IDLE, IDLE | {"num_running_reqs": 1})
    assert shown(load.families(gauges))["running_requests"] == 4
    engine.write(IDLE, IDLE)
    assert shown(load.families(gauges))["running_requests"] == 0


def test_an_engine_without_load_is_not_searched() -> None:
    def pids() -> list[int]:
        raise AssertionError("searched")

    load = EngineLoad("sglang", dict, pids=pids)
    assert shown(load.families(page("num_running_reqs{} 0", "page_size{} 1")))
