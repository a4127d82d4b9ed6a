"""The file discovery: readers and writers at the same time, and files that are not records."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dynamometer.errors import DiscoveryError
from dynamometer.runtime.discovery import connect, file, locks
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.locks import write_locked
from dynamometer.runtime.identity import new_id
from dynamometer.runtime.record import MAX_BYTES, Record, Role, State
from processes import PYTHON

REWRITING = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.locks import write_locked
from dynamometer.runtime.record import Record

async def main():
    record = Record.from_json(sys.argv[2].encode())
    async with FileDiscovery(Path(sys.argv[1])).register(record) as registration:
        print("registered", flush=True)
        for number in range(1, 1_000_000):
            await registration.update(replace(record, since=float(number)))

asyncio.run(main())
"""
FORKING = """
import asyncio, os, sys, time
from pathlib import Path
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.locks import write_locked
from dynamometer.runtime.record import Record

async def main():
    async with FileDiscovery(Path(sys.argv[1])).register(Record.from_json(sys.argv[2].encode())):
        if not os.fork():
            print(os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        await asyncio.sleep(60)

asyncio.run(main())
"""
Start = Callable[[str, Record], "subprocess.Popen[str]"]


def record(**changes: object) -> Record:
    made = Record(
        role=Role.WORKER, id=new_id(), namespace="dynamo", component="backend", models=("tiny",)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run a script with the discovery's directory and a record."""
    started = []

    def run(script: str, what: Record) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [PYTHON, "-c", script, str(tmp_path / "kv"), what.to_json().decode()],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_a_process_that_rewrites_its_record_is_never_missing(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This test is not about the deadline, which a stalled disk can exceed.
    monkeypatch.setattr(file, "READ_SECONDS", 30.0)
    one = record()
    writer = start(REWRITING, one)
    assert first_line(writer) == "registered"
    seen = set()
    until = time.monotonic() + 2.0
    long_lived = FileDiscovery(tmp_path / "kv")
    while time.monotonic() < until:
        for reader in (long_lived, FileDiscovery(tmp_path / "kv")):
            found = await reader.records()
            assert [worker.id for worker in found] == [one.id]
            seen |= {worker.since for worker in found}
    assert writer.poll() is None
    assert len(seen) > 50


async def test_a_record_that_is_rewritten_between_opening_and_locking_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = FileDiscovery(tmp_path / "kv"), FileDiscovery(tmp_path / "kv")
    one = record()
    async with writer.register(one) as registration:
        rewrites = iter(range(1, 4))
        locked = locks.locked

        def rewritten_before(fd: int) -> bool:
            for number in rewrites:  # three times in a row, then never again
                registration._write(replace(one, since=float(number)))
                break
            return locked(fd)

        monkeypatch.setattr(file, "locked", rewritten_before)
        assert await reader.records() == {replace(one, since=3.0)}


async def test_a_successor_of_a_dead_process_is_not_removed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the number after the reader found the file, before its removal."""
    reader, successor = FileDiscovery(tmp_path / "kv"), FileDiscovery(tmp_path / "kv")
    one = record()
    dead = reader.directory / f"{one.id:016x}.json"
    dead.write_bytes(one.to_json())
    registered = successor.register(replace(one, since=2.0))
    original = locks.same_file
    entering: list[asyncio.Future[object]] = []
    loop = asyncio.get_running_loop()

    def taken_over(path: str | Path, fd: int) -> bool:
        answer = original(path, fd)
        if not entering:
            entering.append(asyncio.run_coroutine_threadsafe(registered.__aenter__(), loop))  # type: ignore[arg-type]
            entering[0].result(5)  # type: ignore[call-arg]
        return answer

    monkeypatch.setattr(file, "same_file", taken_over)
    await reader.records()
    assert await reader.records() == {replace(one, since=2.0)}
    await registered.__aexit__(None, None, None)


async def test_two_readers_that_remove_a_dead_record_leave_its_successor(tmp_path: Path) -> None:
    one = record()
    readers = [FileDiscovery(tmp_path / "kv") for _ in range(4)]
    path = readers[0].directory / f"{one.id:016x}.json"
    for turn in range(50):
        path.write_bytes(one.to_json())
        looks = asyncio.gather(*(reader.records() for reader in readers))
        async with FileDiscovery(tmp_path / "kv").register(replace(one, since=float(turn))):
            await looks
            assert await readers[0].records() == {replace(one, since=float(turn))}
        assert await readers[0].records() == frozenset()


async def test_a_reader_never_keeps_a_process_from_writing(tmp_path: Path) -> None:
    one = record()
    discovery = FileDiscovery(tmp_path / "kv")
    path = discovery.directory / f"{one.id:016x}.json"
    path.write_bytes(one.to_json())
    with path.open("rb") as reading:
        fcntl.flock(reading, fcntl.LOCK_SH)
        async with discovery.register(one) as registration:
            with path.open("rb") as again, pytest.raises(BlockingIOError):
                fcntl.flock(again, fcntl.LOCK_SH | fcntl.LOCK_NB)
            await registration.update(replace(one, state=State.READY))
            assert await discovery.records() == {replace(one, state=State.READY)}


async def test_a_child_of_fork_does_not_keep_its_parents_record_alive(
    tmp_path: Path, start: Start
) -> None:
    discovery = FileDiscovery(tmp_path / "kv")
    one = record()
    parent = start(FORKING, one)
    child = int(first_line(parent))
    try:
        assert await discovery.records() == {one}
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        assert await discovery.records() == frozenset()
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_second_process_with_the_same_id_is_refused(tmp_path: Path) -> None:
    one = record()
    async with FileDiscovery(tmp_path / "kv").register(one):
        with pytest.raises(DiscoveryError, match="the same instance id"):
            async with FileDiscovery(tmp_path / "kv").register(replace(one, since=1.0)):
                pass
        assert await FileDiscovery(tmp_path / "kv").records() == {one}


async def test_the_files_of_a_killed_writer_do_not_stop_its_successor(tmp_path: Path) -> None:
    one = record()
    discovery = FileDiscovery(tmp_path / "kv")
    (discovery.directory / f"{one.id:016x}.new").write_text("{")
    async with discovery.register(one):
        assert await discovery.records() == {one}


async def test_a_frozen_holder_of_the_lock_is_reported_and_stops_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "_LOCK_SECONDS", 0.05)
    discovery = FileDiscovery(tmp_path / "kv")
    one = record()
    async with discovery.register(one) as registration:
        holder = os.open(discovery.directory, os.O_RDONLY)
        try:
            fcntl.flock(holder, fcntl.LOCK_EX)
            assert await discovery.records() == {one}
            with pytest.raises(DiscoveryError, match=str(discovery.directory)):
                await registration.update(replace(one, since=1.0))
        finally:
            os.close(holder)
        await registration.update(replace(one, since=1.0))
        assert await discovery.records() == {replace(one, since=1.0)}


async def test_a_file_is_parsed_once_and_again_when_it_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    from_json = Record.from_json

    def counted(text: bytes) -> Record:
        parsed.append(text)
        return from_json(text)

    monkeypatch.setattr(Record, "from_json", counted)
    writer, reader = FileDiscovery(tmp_path / "kv"), FileDiscovery(tmp_path / "kv")
    one, two = record(), record()
    async with writer.register(one) as registration, writer.register(two):
        first = await reader.records()
        assert await reader.records() is first
        assert len(parsed) == 2
        await registration.update(replace(one, since=1.0))
        assert await reader.records() == {replace(one, since=1.0), two}
        assert len(parsed) == 3


async def test_a_directory_that_hangs_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file, "READ_SECONDS", 0.1)
    monkeypatch.setattr(file, "WRITE_SECONDS", 0.1)
    discovery, other = FileDiscovery(tmp_path / "kv"), FileDiscovery(tmp_path / "kv")
    one = record()
    answers = threading.Event()
    listdir = os.listdir

    def hanging(path: Path) -> list[str]:
        answers.wait(10)
        return listdir(path)

    async with other.register(one), discovery.register(record()) as registration:
        monkeypatch.setattr(os, "listdir", hanging)
        try:
            begun = time.monotonic()
            for _ in range(20):  # the first waits, the others know
                with pytest.raises(DiscoveryError, match="does not answer"):
                    await discovery.records()
                assert discovery.fault == f"discovery: {tmp_path}/kv/instances does not answer"
            with pytest.raises(DiscoveryError, match="does not answer"):
                await registration.update(record())
            assert time.monotonic() - begun < 1.0
        finally:
            answers.set()
        async with asyncio.timeout(5):
            while True:
                try:
                    found = await discovery.records()
                    break
                except DiscoveryError:
                    await asyncio.sleep(0.01)
        assert one in found
        assert discovery.fault == ""
    assert sum("does not answer" in message for message in caplog.messages) == 1


async def test_write_that_a_hanging_directory_delays_is_dropped_after_the_withdrawal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "READ_SECONDS", 0.05)
    monkeypatch.setattr(file, "WRITE_SECONDS", 0.05)
    written = []

    def noted(path: Path, content: bytes) -> int:
        written.append(path)
        return write_locked(path, content)

    monkeypatch.setattr(file, "write_locked", noted)
    discovery, answers = FileDiscovery(tmp_path / "kv"), threading.Event()
    hanging = discovery._thread.submit(lambda: answers.wait(10))
    try:
        with pytest.raises(DiscoveryError, match="does not answer"):
            async with discovery.register(record()):
                pass
    finally:
        answers.set()
    await hanging
    assert await FileDiscovery(tmp_path / "kv").records() == await discovery.records() == set()
    assert written == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"models":', "is not a valid record"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (b"[" * 100_000, "is not a valid record"),
        (json.dumps({"role": "worker", "id": 7, "namespace": "n", "component": "c",
                     "models": "abc"}).encode(), "models must be an array"),
        (json.dumps({"role": "worker", "id": 8, "namespace": "n", "component": "c"}).encode(),
         "its id is 8"),
    ],
)  # fmt: skip
async def test_a_file_that_is_not_a_record_is_reported_once_and_affects_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, why: str
) -> None:
    discovery = FileDiscovery(tmp_path / "kv")
    one = record()
    wrong = discovery.directory / f"{7:016x}.json"
    with wrong.open("wb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        owner.write(content)
        owner.flush()
        async with discovery.register(one):
            for _ in range(3):
                assert await discovery.records() == {one}
        messages = [message for message in caplog.messages if why in message]
        assert len(messages) == 1
        assert str(wrong) in messages[0]


async def test_a_reader_without_descriptors_keeps_what_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discovery = FileDiscovery(tmp_path / "kv")
    real = os.open

    def exhausted(path: str | Path, *arguments: int) -> int:
        if str(path).endswith(".json"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return real(path, *arguments)

    one = record()
    async with FileDiscovery(tmp_path / "kv").register(one):
        assert await discovery.records() == {one}
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", exhausted)
            for _ in range(3):
                assert await discovery.records() == {one}
    assert await discovery.records() == frozenset()


async def test_a_record_above_the_limit_is_not_written(tmp_path: Path) -> None:
    long = record(model_info={"tiny": "x" * MAX_BYTES})
    with pytest.raises(DiscoveryError, match="the limit is"):
        async with FileDiscovery(tmp_path / "kv").register(long):
            pass


async def test_connect_returns_the_file_discovery_of_the_directory(tmp_path: Path) -> None:
    one = record()
    async with (await connect(tmp_path / "kv")).register(one):
        assert await FileDiscovery(tmp_path / "kv").records() == {one}
    (tmp_path / "file").write_text("")
    with pytest.raises(DiscoveryError, match="file"):
        await connect(tmp_path / "file")


# Files of vanished processes.


def dead(directory: Path, what: Record) -> Path:
    """Write the file of a process that was killed."""
    path = FileDiscovery(directory).directory / f"{what.id:016x}.json"
    path.write_bytes(what.to_json())
    return path


async def test_a_reader_that_starts_after_a_death_sees_the_vanished_process(tmp_path: Path) -> None:
    one = record()
    path = dead(tmp_path, one)
    os.utime(path, (1, 1))  # the process registered long ago, and was not read since its death
    for _ in range(2):  # the second one finds the renamed file
        assert (await FileDiscovery(tmp_path).processes()).vanished == (one,)
    assert not path.exists()


@pytest.mark.parametrize(("seconds", "kept"), [(-890, True), (-910, False), (910, False)])
async def test_a_vanished_process_is_forgotten_after_15_minutes(
    tmp_path: Path, seconds: float, kept: bool
) -> None:
    one = record()
    dead(tmp_path, one)
    discovery = FileDiscovery(tmp_path)
    assert (await discovery.processes()).vanished == (one,)
    (file,) = discovery.directory.iterdir()
    ended = time.time() + seconds
    os.utime(file, (ended, ended))
    assert (await discovery.processes()).vanished == ((one,) if kept else ())
    assert file.exists() is kept


async def test_vanished_processes_are_in_the_order_of_their_ends(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path)
    records = [record() for _ in range(5)]
    for one in records:
        dead(tmp_path, one)
    await discovery.processes()
    for age, one in enumerate(records):
        ended = time.time() - age
        os.utime(discovery.directory / f"{one.id:016x}.vanished", (ended, ended))
    assert (await discovery.processes()).vanished == tuple(reversed(records))
    assert await discovery.processes() is await discovery.processes()


async def test_a_file_of_a_vanished_process_is_parsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead(tmp_path, record())
    discovery = FileDiscovery(tmp_path)
    first = await discovery.processes()
    monkeypatch.setattr(Record, "from_json", None)
    assert await discovery.processes() is first


async def test_files_that_are_not_of_vanished_processes_are_ignored(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path)
    os.mkfifo(discovery.directory / f"{1:016x}.vanished")
    (discovery.directory / f"{2:016x}.vanished").symlink_to("/etc/hostname")
    (discovery.directory / f"{3:016x}.vanished").write_text("{")
    (discovery.directory / f"{4:016x}.vanished").mkdir()
    assert (await discovery.processes()).vanished == ()
