"""The stacks of processes that hang."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamometer.worker import stacks
from dynamometer.worker.stacks import StacksError, tracing_hint, write_stacks

SLEEPER = """
import time
def waits_for_the_end(secret):
    print(flush=True)
    time.sleep(60)
waits_for_the_end("a local variable")
"""


@pytest.fixture
def pid() -> Iterator[int]:
    command = [sys.executable, "-c", SLEEPER, "--api-key", "a key\nof two lines"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


async def written(*pids: int, python: str = sys.executable, worker: str = "00ab") -> Path:
    return await write_stacks(pids, python=python, worker=worker, reason="it sleeps", deadline=20)


async def test_the_stacks_are_in_a_file_that_only_this_user_can_read(
    pid: int, runtime_directory: Path
) -> None:
    path = await written(pid)
    assert path.parent == runtime_directory / "dynamometer" / "stacks"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert "the engine is unresponsive: it sleeps" in text
    assert f"process {pid}: " in text
    assert "waits_for_the_end" in text


async def test_neither_local_variables_nor_keys_are_in_the_file(pid: int) -> None:
    text = (await written(pid)).read_text()
    assert "a local variable" not in text
    assert "a key" not in text
    assert "of two lines" not in text


async def test_a_process_that_ended_does_not_hide_the_others(pid: int) -> None:
    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await ended.wait()
    text = (await written(ended.pid, pid)).read_text()
    assert f"process {ended.pid}: ended" in text
    assert "waits_for_the_end" in text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dump(_program: str, _pid: int) -> tuple[bool, str]:
        return True, ""

    monkeypatch.setattr(stacks, "_dump", dump)


async def test_ten_files_are_kept(pid: int) -> None:
    paths = [await written(pid) for _ in range(12)]
    assert [path.exists() for path in paths] == [False] * 2 + [True] * 10


@pytest.mark.usefixtures("quick")
async def test_incidents_of_one_worker_remove_no_files_of_another() -> None:
    other = [await written(1, worker="1") for _ in range(10)]
    for _ in range(30):
        await written(1, worker="00a1")
    assert all(path.exists() for path in other)


@pytest.mark.usefixtures("quick")
async def test_files_of_workers_that_are_gone_are_limited() -> None:
    paths = [await written(1, worker=str(number)) for number in range(102)]
    assert [path.exists() for path in paths] == [False] * 2 + [True] * 100


async def test_a_missing_program_is_named(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_find_program", lambda _: None)
    with pytest.raises(StacksError, match="py-spy is not installed beside /opt/python"):
        await written(pid, python="/opt/python")


@pytest.fixture
def denying(tmp_path: Path) -> str:
    """An interpreter beside a py-spy that may not trace: the tests may run as root, which may."""
    (tmp_path / "python").symlink_to(sys.executable)
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\necho \"Permission Denied: Try 'sudo'\" >&2\nexit 1\n")
    program.chmod(0o755)
    return str(tmp_path / "python")


async def test_a_worker_that_may_not_trace_names_the_remedy(
    pid: int, denying: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = tmp_path / "ptrace_scope"
    scope.write_text("1\n")
    monkeypatch.setattr(stacks, "_YAMA", scope)
    with pytest.raises(
        StacksError, match=r"may not trace its engine: kernel.yama.ptrace_scope is 1"
    ):
        await written(pid, python=denying)
    assert not (tmp_path / "dynamometer").exists()  # of a test


@pytest.mark.parametrize(
    ("scope", "hint"),
    [
        ("0", "CAP_SYS_PTRACE"),
        ("1", "sysctl kernel.yama.ptrace_scope=0"),
        ("2", "CAP_SYS_PTRACE"),
        ("3", "next boot"),
        (None, "the same user"),
    ],
)
def test_each_setting_of_the_kernel_has_a_remedy(
    scope: str | None, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ptrace_scope"
    if scope is not None:
        path.write_text(scope)
    monkeypatch.setattr(stacks, "_YAMA", path)
    assert hint in tracing_hint()


async def test_a_directory_that_cannot_be_written_to_is_named(
    pid: int, runtime_directory: Path
) -> None:
    (runtime_directory / "dynamometer").mkdir(mode=0o700)
    (runtime_directory / "dynamometer" / "stacks").write_text("")
    with pytest.raises(Exception, match="stacks is not a directory"):
        await written(pid)


async def test_a_process_that_takes_too_long_is_left(
    pid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(stacks, "_find_program", lambda _: str(program))
    with pytest.raises(StacksError, match=r"did not end within 0.2 s"):
        await write_stacks((pid,), python="", worker="1", reason="", deadline=0.2)
    assert not [p for p in os.listdir("/proc") if p.isdigit() and _runs(p, str(program))]


async def test_only_some_processes_are_read_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = largest = 0

    async def dump(_program: str, _pid: int) -> tuple[bool, str]:
        nonlocal running, largest
        running += 1
        largest = max(largest, running)
        await asyncio.sleep(0)
        running -= 1
        return True, ""

    monkeypatch.setattr(stacks, "_find_program", lambda _: "py-spy")
    monkeypatch.setattr(stacks, "_dump", dump)
    await written(*range(300))
    assert largest == 8


def _runs(pid: str, program: str) -> bool:
    try:
        return program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
