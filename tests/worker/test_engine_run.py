"""The processes whose end is the end of an engine, and the cause of several ends at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import psutil
import pytest

from dynamometer.engines.interface import Launch
from dynamometer.engines.sglang import SGLang
from dynamometer.errors import EngineError
from dynamometer.process import tasks
from dynamometer.process.exits import ProcessExit
from dynamometer.runtime.lifecycle import EngineExit, ExitCause
from dynamometer.worker import engine_run
from dynamometer.worker.run_directory import run_directory

# A process with a title, which forks one child with the same title, and starts another program.
TITLED = """
import os, subprocess, sys, time
fork = os.fork()
if fork:
    compiler = subprocess.Popen([sys.argv[1], "-c", "import time; time.sleep(60)"])
    print(os.getpid(), fork, compiler.pid, flush=True)
time.sleep(60)
"""
LAUNCH = Launch(command=[], environment={}, url="", model="m", model_path="m")


@pytest.fixture
def titled() -> Iterator[Sequence[int]]:
    """Start a scheduler; return the pids of this process, its fork and its compiler."""
    command = ["sglang::scheduler", "-c", TITLED, sys.executable]
    process = subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    yield pids
    for pid in reversed(pids):
        psutil.Process(pid).kill()
    process.communicate()


def test_forks_and_compilers_are_not_essential(titled: Sequence[int]) -> None:
    scheduler, *_ = titled
    members = [psutil.Process(pid) for pid in titled]
    found = engine_run.essential(members, SGLang().is_process, first=0)
    assert {process.pid: name for process, name in found.items()} == {
        scheduler: "sglang::scheduler"
    }


def test_the_first_process_is_not_watched_twice(titled: Sequence[int]) -> None:
    members = [psutil.Process(titled[0])]
    assert not engine_run.essential(members, SGLang().is_process, first=titled[0])


@pytest.mark.parametrize(
    ("ended", "cause"),
    [
        ([("server", -9), ("scheduler", -9)], "server"),
        ([("server", -9), ("detokenizer", -9), ("scheduler", 1)], "scheduler"),
        ([("scheduler", -signal.SIGSEGV), ("detokenizer", -9)], "scheduler"),
        ([("detokenizer", None), ("scheduler", -9)], "detokenizer"),
    ],
)
def test_the_cause_of_several_ends_is_the_one_that_is_no_consequence(
    ended: Sequence[tuple[str, int | None]], cause: str
) -> None:
    exits = [ProcessExit(number, name, code) for number, (name, code) in enumerate(ended)]
    assert engine_run.first_cause(exits).name == cause


async def test_a_program_that_cannot_be_run_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    launch = replace(LAUNCH, command=["/nonexistent/python"])
    with run_directory(15) as directory:
        for _ in range(2):
            with pytest.raises(EngineError, match="cannot run /nonexistent/python: No such file"):
                await engine_run.EngineRun.start(SGLang(), launch, directory)
        assert list(directory.temporary.iterdir()) == []


# An engine that fails as SGLang does: it kills its processes one after the other, itself last.
FAILING = """
import os, pathlib, signal, subprocess, sys, time
child = subprocess.Popen(
    ["sglang::detokenizer", "-c", "import time; time.sleep(60)"], executable=sys.executable
)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
print("ValueError: no memory", flush=True)
child.kill()
os.closerange(1, 3)
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_failure_has_its_reason_although_the_log_ends_before_the_first_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    fail = tmp_path / "fail"
    command = [sys.executable, "-c", FAILING, str(fail)]
    launch = replace(LAUNCH, command=command, environment=os.environ | {"HF_HUB_OFFLINE": "0"})
    with run_directory(15) as directory:
        run = await engine_run.EngineRun.start(SGLang(), launch, directory)
        log = asyncio.create_task(run.process.read_log(lambda _: None))
        try:
            async with asyncio.timeout(20):
                while not [
                    child
                    for child in psutil.Process(run.process.pid).children()
                    if child.cmdline()[0] == "sglang::detokenizer"
                ]:
                    await asyncio.sleep(0.01)
                await run.record()
                fail.touch()
                end = await run.exited(log)
        finally:
            await run.end(grace=0, kill_now=lambda: True)
            await tasks.end(log)
    assert end.description == "the engine ended: ValueError: no memory (signal 9)"


def test_a_process_that_was_killed_from_outside_has_no_reason_in_the_log() -> None:
    log = ["ValueError: of a request, long ago"]
    run = engine_run.EngineRun(
        SGLang(), LAUNCH, mock.Mock(), mock.Mock(pid=1, log=log), temporary=Path(), kills=0
    )
    killed = run.describe(ProcessExit(2, "sglang::scheduler", -9), memory_ran_out=False)
    assert killed == EngineExit(
        code=-9,
        cause=ExitCause.SIGNAL,
        description="the engine ended: process sglang::scheduler: "
        "it was killed by signal 9 (SIGKILL)",
        process="sglang::scheduler",
    )
    out_of_memory = run.describe(ProcessExit(2, "sglang::scheduler", -9), memory_ran_out=True)
    assert out_of_memory.cause is ExitCause.OUT_OF_MEMORY
    assert "because memory ran out: raise the memory limit" in out_of_memory.description
    crashed = run.describe(ProcessExit(2, "sglang::scheduler", -11), memory_ran_out=True)
    assert crashed.cause is ExitCause.SIGNAL
    exited = run.describe(ProcessExit(1, "server", 1), memory_ran_out=False)
    assert exited.cause is ExitCause.EXIT
    assert (
        exited.description == "the engine ended: ValueError: of a request, long ago (exit code 1)"
    )
    unknown = run.describe(ProcessExit(2, "sglang::scheduler", None), memory_ran_out=False)
    assert (unknown.code, unknown.cause) == (None, ExitCause.EXIT)
