"""The contract of every discovery: a new variant is an entry in `VARIANTS`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from dynamometer.errors import DiscoveryError, EngineError
from dynamometer.runtime.discovery import connect, file
from dynamometer.runtime.discovery.file import FileDiscovery
from dynamometer.runtime.discovery.interface import Discovery, Processes
from dynamometer.runtime.identity import new_id
from dynamometer.runtime.record import Record, Role, State
from processes import PYTHON

SPAWNED = """
import asyncio, sys
from pathlib import Path
from dynamometer.runtime.discovery import connect
from dynamometer.runtime.record import Record

async def main():
    record = Record.from_json(sys.argv[2].encode())
    async with (await connect(Path(sys.argv[1]))).register(record):
        print("registered", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def record(**changes: object) -> Record:
    made = Record(
        role=Role.WORKER, id=new_id(), namespace="dynamo", component="backend", models=("tiny",)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


VARIANTS: Mapping[str, Callable[[Path], Awaitable[Discovery]]] = {
    "file": lambda directory: connect(directory / "kv"),
}


@pytest.fixture(params=VARIANTS)
async def discovery(request: pytest.FixtureRequest, tmp_path: Path) -> Discovery:
    return await VARIANTS[request.param](tmp_path)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[Record], subprocess.Popen[str]]]:
    """Register a record from another process."""
    started = []

    def start(what: Record) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [PYTHON, "-c", SPAWNED, str(tmp_path / "kv"), what.to_json().decode()],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "registered\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def vanished(discovery: Discovery) -> list[Record]:
    return list((await discovery.processes()).vanished)


async def until(watch: AsyncIterator[frozenset[Record]], wanted: set[Record]) -> None:
    async with asyncio.timeout(5):
        async for found in watch:
            if found == wanted:
                return


async def test_a_registered_process_is_seen_while_its_context_is_open(discovery: Discovery) -> None:
    one = record()
    async with discovery.register(one):
        assert await discovery.records() == {one}
    assert await discovery.records() == frozenset()


async def test_an_update_replaces_the_record(discovery: Discovery) -> None:
    one = record()
    async with discovery.register(one) as registration:
        ready = replace(one, state=State.READY, since=1.5, request_url="http://127.0.0.1:1")
        await registration.update(ready)
        assert await discovery.records() == {ready}


async def test_a_record_is_there_while_it_is_rewritten(discovery: Discovery) -> None:
    one = record()
    async with discovery.register(one) as registration:
        for number in range(1, 50):
            update = asyncio.create_task(registration.update(replace(one, since=float(number))))
            assert {found.id for found in await discovery.records()} == {one.id}
            await update


async def test_late_update_does_not_show_a_process_that_has_left(discovery: Discovery) -> None:
    one = record()
    async with discovery.register(one) as registration:
        # A task may be cancelled while its update is on the way.
        update = asyncio.create_task(registration.update(replace(one, state=State.READY)))
        await asyncio.sleep(0)
        update.cancel()
    assert await discovery.records() == frozenset()
    await registration.update(replace(one, state=State.READY, since=2.0))
    assert await discovery.records() == frozenset()
    async with discovery.register(replace(one, since=3.0)):  # a successor of the same id
        await registration.update(replace(one, state=State.READY, since=4.0))
        assert await discovery.records() == {replace(one, since=3.0)}


async def test_an_unchanged_reading_is_the_same_object(discovery: Discovery) -> None:
    async with discovery.register(record()):
        assert await discovery.records() is await discovery.records()


async def test_a_watch_shows_what_is_there_and_each_change(discovery: Discovery) -> None:
    async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
        assert await anext(watch) == frozenset()
        one, two = record(), record()
        async with discovery.register(one):
            await until(watch, {one})
            async with discovery.register(two):
                await until(watch, {one, two})
            await until(watch, {one})
        await until(watch, set())


async def test_a_registry_that_cannot_be_read_is_the_fault(
    discovery: Discovery, tmp_path: Path
) -> None:
    assert discovery.fault == ""
    (tmp_path / "kv").rename(tmp_path / "elsewhere")
    with pytest.raises(DiscoveryError) as raised:
        await discovery.records()
    assert discovery.fault == str(raised.value)
    assert str(tmp_path / "kv") in discovery.fault
    (tmp_path / "elsewhere").rename(tmp_path / "kv")
    await discovery.records()
    assert discovery.fault == ""


async def test_a_killed_process_is_withdrawn_at_once(
    discovery: Discovery, spawn: Callable[[Record], subprocess.Popen[str]]
) -> None:
    one, two = record(), record()
    killed, _ = spawn(one), spawn(two)
    assert await discovery.records() == {one, two}
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert await discovery.records() == {two}


async def test_a_killed_process_has_vanished(
    discovery: Discovery, spawn: Callable[[Record], subprocess.Popen[str]]
) -> None:
    one, two = record(system_url="http://127.0.0.1:1"), record()
    for what in (one, two):
        process = spawn(what)
        process.kill()
        process.wait()
        # The death of the first one is noticed first.
        assert (await vanished(discovery))[-1] == what
    assert await discovery.processes() == Processes(frozenset(), (one, two))


async def test_a_process_that_ended_cleanly_has_not_vanished(discovery: Discovery) -> None:
    async with discovery.register(record()):
        pass  # shorter than any interval of polling
    async with discovery.register(record()):
        assert len((await discovery.processes()).live) == 1
    assert await discovery.processes() == Processes()


async def test_a_process_that_is_cancelled_has_not_vanished(discovery: Discovery) -> None:
    async def live() -> None:
        async with discovery.register(record()):
            registered.set()
            await asyncio.Event().wait()

    registered = asyncio.Event()
    task = asyncio.create_task(live())
    await registered.wait()
    task.cancel()
    await asyncio.wait({task})
    assert await discovery.processes() == Processes()


async def test_a_process_that_ended_with_an_error_has_vanished(discovery: Discovery) -> None:
    one = record()

    async def give_up() -> None:
        async with discovery.register(one) as registration:
            await registration.update(replace(one, state=State.FAILED))
            raise EngineError("the engine was given up")

    with pytest.raises(EngineError):
        await give_up()
    failed = replace(one, state=State.FAILED)
    assert await discovery.processes() == Processes(frozenset(), (failed,))


async def test_a_process_with_the_id_of_a_vanished_one_replaces_it(
    discovery: Discovery, spawn: Callable[[Record], subprocess.Popen[str]]
) -> None:
    one = record()
    process = spawn(one)
    process.kill()
    process.wait()
    assert await vanished(discovery) == [one]
    again = replace(one, since=2.0)
    async with discovery.register(again):
        assert await discovery.processes() == Processes(frozenset({again}))
    assert await discovery.processes() == Processes()


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_process_at_the_address_of_a_vanished_one_replaces_it(
    discovery: Discovery, spawn: Callable[[Record], subprocess.Popen[str]], noticed: bool
) -> None:
    one = record(system_url="http://127.0.0.1:8081")
    other = record(system_url="http://127.0.0.1:8082")
    for process in (spawn(one), spawn(other)):
        process.kill()
        process.wait()
    if noticed:
        assert set(await vanished(discovery)) == {one, other}
    successor = record()
    async with discovery.register(successor) as registration:
        await registration.update(replace(successor, system_url=one.system_url))
    assert await discovery.processes() == Processes(frozenset(), (other,))


async def test_a_frozen_process_is_live(
    discovery: Discovery, spawn: Callable[[Record], subprocess.Popen[str]]
) -> None:
    one = record()
    process = spawn(one)
    process.send_signal(signal.SIGSTOP)
    assert await discovery.processes() == Processes(frozenset({one}))


async def test_a_dying_process_is_live_or_vanished_for_every_reader(
    discovery: Discovery, spawn: Callable[[Record], subprocess.Popen[str]], tmp_path: Path
) -> None:
    readers = [discovery, *[FileDiscovery(tmp_path / "kv") for _ in range(3)]]
    for _ in range(5):
        one = record()
        process = spawn(one)
        readings = [reader.processes() for reader in readers for _ in range(20)]
        process.kill()
        for seen in await asyncio.gather(*readings):
            assert one in {*seen.live, *seen.vanished}
        process.wait()
        for seen in await asyncio.gather(*(reader.processes() for reader in readers)):
            assert one in seen.vanished


async def test_simultaneous_readers_are_not_mistaken_for_owners(
    discovery: Discovery, spawn: Callable[[Record], subprocess.Popen[str]]
) -> None:
    one = record()
    process = spawn(one)
    looks = await asyncio.gather(*(discovery.records() for _ in range(50)))
    assert set(looks) == {frozenset({one})}
    process.kill()
    process.wait()
    looks = await asyncio.gather(*(discovery.records() for _ in range(50)))
    assert set(looks) == {frozenset()}


async def test_files_that_are_not_records_are_skipped_and_stay(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path / "kv")
    one = record()
    (discovery.directory / "notes.txt").write_text("mine")
    os.mkfifo(discovery.directory / "0123456789abcdef.json")
    async with discovery.register(one):
        assert await discovery.records() == {one}
    assert (discovery.directory / "notes.txt").read_text() == "mine"


async def test_a_record_that_was_removed_comes_back(
    discovery: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "KEEP_SECONDS", 0.05)
    one = record()
    async with discovery.register(one) as registration:
        shutil.rmtree(tmp_path / "kv")
        with pytest.raises(DiscoveryError):
            await discovery.records()
        ready = replace(one, state=State.READY)
        with pytest.raises(DiscoveryError):
            await registration.update(ready)
        async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]
            await until(watch, {ready})


async def test_a_record_that_cannot_be_written_names_the_place(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path / "kv")
    discovery.directory.rmdir()
    with pytest.raises(DiscoveryError, match=str(discovery.directory)):
        async with discovery.register(record()):
            pass


def test_the_directory_is_private_and_not_a_link(tmp_path: Path) -> None:
    made = FileDiscovery(tmp_path / "kv").directory
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "kv")
    with pytest.raises(DiscoveryError, match="is a symbolic link"):
        FileDiscovery(tmp_path / "link")
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(DiscoveryError, match="other users may write"):
        FileDiscovery(tmp_path / "open")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiscoveryError, match="file"):
        FileDiscovery(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 1234, 1234)
    with pytest.raises(DiscoveryError, match="belongs to user 1234"):
        FileDiscovery(tmp_path / "theirs")
