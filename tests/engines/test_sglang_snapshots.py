"""A rank without requests has no load, whatever its gauges show."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_load_signals import CONSTANT, page, shown

from dynamometer.engines.load_signals import EngineLoad
from dynamometer.engines.sglang_snapshots import LoadSnapshots
from dynamometer.exposition.families import Family

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
    return LoadSnapshots(lambda: [os.getpid(), engine.process.pid]).read().idle_ranks()


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
    assert snapshots.read().idle_ranks() == {"0", ""}
    engine.end()
    assert not snapshots.read().idle_ranks()


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


def frozen(phase: str, **gauges: int) -> tuple[Family, ...]:
    """Return the page of an engine of one phase whose gauges stand still."""
    constant = f'max_total_num_tokens{{engine_type="{phase}"}} 8192'
    names = {"running": "num_running_reqs", "waiting": "num_queue_reqs"}
    lines = [
        f'{names.get(name, f"num_{phase}_{name}_queue_reqs")}{{engine_type="{phase}"}} {value}'
        for name, value in gauges.items()
    ]
    return page(constant, *lines)


def snapshot(phase: str, *queues: int, running: int = 0, waiting: int = 0) -> dict[str, object]:
    """Return a snapshot as SGLang writes it.

    Args:
        phase: the mode.
        queues: the lengths of the queues, in the order of the snapshot.
        running: the requests in the running batch, which prefill workers do not have.
        waiting: the requests in the queue of those that wait for a batch.
    """
    bootstrap, _inflight, *of_decode = queues
    all_waiting = waiting + bootstrap + sum(of_decode)
    counts = {"num_running_reqs": running, "num_waiting_reqs": all_waiting}
    return (
        IDLE
        | {name: count for name, count in counts.items() if count}
        | {"disaggregation": [phase, *queues, 0.0, 0.0], "num_total_tokens": 9}
    )


def load_of(engine: Engine, families: tuple[Family, ...]) -> tuple[float, float]:
    load = EngineLoad("sglang", dict, pids=lambda: [engine.process.pid])
    found = shown(load.families(families))
    return found["running_requests"], found["queued_requests"]


@pytest.mark.parametrize(
    ("gauges", "now", "expected"),
    [
        # No batch has run since the start: all gauges are 0, or there are none.
        ({"running": 0, "waiting": 0, "bootstrap": 0, "inflight": 0}, [7, 0], (0, 7)),
        # The transfers of the last batch stand still, and other requests came.
        ({"running": 3, "waiting": 0, "bootstrap": 0, "inflight": 3}, [2, 3], (0, 5)),
        # They ended, and all requests since wait for a decode worker.
        ({"running": 3, "waiting": 0, "bootstrap": 0, "inflight": 3}, [4, 0], (0, 4)),
        # A long prompt in chunks is in no queue.
        ({"running": 1, "waiting": 0, "bootstrap": 0, "inflight": 0}, [0, 2], (1, 2)),
    ],
)
def test_requests_of_a_prefill_engine_that_waits_are_counted_once(
    engine: Engine, gauges: dict[str, int], now: list[int], expected: tuple[int, int]
) -> None:
    engine.write(snapshot("prefill", *now, 0, 0, 0))
    assert load_of(engine, frozen("prefill", **gauges)) == expected


@pytest.mark.parametrize(
    ("gauges", "now", "expected"),
    [
        ({"running": 0, "waiting": 0, "prealloc": 0, "transfer": 0}, {"queues": [5, 0, 0]}, (0, 5)),
        # The running requests ended, and others wait for a prefill worker.
        ({"running": 4, "waiting": 1, "prealloc": 0, "transfer": 1}, {"queues": [2, 3, 0]}, (0, 5)),
        # Retracted requests are in no gauge.
        (
            {"running": 4, "waiting": 0, "prealloc": 0, "transfer": 0},
            {"queues": [0, 0, 2], "running": 3, "waiting": 1},
            (3, 3),
        ),
    ],
)
def test_requests_of_a_decode_engine_that_waits_are_counted_once(
    engine: Engine, gauges: dict[str, int], now: dict[str, Any], expected: tuple[int, int]
) -> None:
    engine.write(snapshot("decode", 0, 0, *now.pop("queues"), **now))
    assert load_of(engine, frozen("decode", **gauges)) == expected


counts = st.integers(0, 9)


@given(st.sampled_from(["prefill", "decode"]), st.lists(counts, min_size=7, max_size=7))
def test_a_snapshot_has_each_request_of_a_side_once(phase: str, numbers: list[int]) -> None:
    running, waiting, *queues = numbers
    zeros = (2, 3, 4) if phase == "prefill" else (0, 1)
    queues = [0 if index in zeros else value for index, value in enumerate(queues)]
    running = 0 if phase == "prefill" else running
    written = msgspec.msgpack.encode(snapshot(phase, *queues, running=running, waiting=waiting))
    content = struct.pack("<4sHHI", b"SLNS", 2, 1, SLOT) + struct.pack("<I", len(written)) + written
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        snapshots = LoadSnapshots(tuple)
        snapshots._path = file.name
        (values,) = snapshots.read().queues().values()
    assert sum(values.values()) == running + waiting + sum(queues)


def test_each_rank_of_a_side_has_its_own_queues(engine: Engine) -> None:
    load = EngineLoad("sglang", dict, ranks=True, pids=lambda: [engine.process.pid])
    engine.write(snapshot("decode", 0, 0, 1, 2, 0, running=3), snapshot("decode", 0, 0, 0, 0, 0))
    series = 'engine_type="decode"'
    found = shown(
        load.families(
            page(
                f'num_running_reqs{{dp_rank="0",{series}}} 8',
                f'num_running_reqs{{dp_rank="1",{series}}} 5',
                f'num_queue_reqs{{dp_rank="0",{series}}} 4',
                f'num_queue_reqs{{dp_rank="1",{series}}} 4',
            )
        )
    )
    assert (found["rank_running_requests/0"], found["rank_running_requests/1"]) == (3, 0)
    assert (found["rank_queued_requests/0"], found["rank_queued_requests/1"]) == (3, 0)
    assert (found["running_requests"], found["queued_requests"]) == (3, 3)


@pytest.mark.parametrize(
    "array",
    [
        None,
        "prefill",
        ["prefill"],
        ["prefill", 1, 2],
        ["prefill", 1, 2, None, 0, 0],
        ["prefill", "1", 2, 0, 0, 0],
        ["another", 1, 2, 3, 4, 5],
        NO_QUEUES,
    ],
    ids=str,
)
def test_a_snapshot_without_valid_queues_leaves_the_gauges(engine: Engine, array: object) -> None:
    engine.write(IDLE | {"disaggregation": array, "num_total_tokens": 9})
    gauges = frozen("prefill", running=0, waiting=1, bootstrap=2, inflight=3)
    assert load_of(engine, gauges) == (0, 6)


def test_values_of_prefill_and_decode_follow_the_snapshot(engine: Engine) -> None:
    load = EngineLoad("sglang", dict, pids=lambda: [engine.process.pid])
    gauges = frozen("prefill", running=0, waiting=0, bootstrap=0, inflight=0)
    engine.write(IDLE | {"disaggregation": ["prefill", 0, 0, 0, 0, 0, 0.0, 0.0]})
    before = load.families(gauges)
    assert shown(before)["queued_requests"] == 0
    assert load.families(gauges) is before
    engine.write(snapshot("prefill", 2, 0, 0, 0, 0))
    assert shown(load.families(gauges))["queued_requests"] == 2
    engine.end()
    assert shown(load.families(gauges))["queued_requests"] == 0
