"""The engines that run on this machine, and the engine to which a process belongs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dynamometer.errors import SettingsError
from dynamometer.exporter import finder
from processes import PYTHON, Process, running
from stack import eventually


@pytest.fixture
def looks_like_an_engine(tmp_path: Path) -> Path:
    """A directory in which `python -m sglang.launch_server` waits."""
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text("import sys; sys.stdin.read()")
    return tmp_path


def test_a_process_that_has_no_environment_yet_is_no_engine_yet(looks_like_an_engine: Path) -> None:
    """A worker's engine, and one with the Rust server, can be recognised only a moment later."""
    with subprocess.Popen(
        [sys.executable, "-m", "sglang.launch_server", "--model", "m", "--port", "1"],
        cwd=looks_like_an_engine,
        env={},
        stdin=subprocess.PIPE,
    ) as process:

        def found() -> list[finder.FoundEngine]:
            return [one for one in finder.find()[0] if one.process.pid == process.pid]

        assert found() == []
        eventually(found, within=10, what="one that never gets any is found all the same")
        (running,) = found()
        assert running.page_has_more is None
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def shell(directory: Path, *ports: int) -> Iterator[tuple[Process, dict[int, psutil.Process]]]:
    """A shell that has started an imitation of an engine on each port."""
    package = directory / "sglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text("import signal; signal.pause()")
    engine = f"{PYTHON} -m sglang.launch_server --model m --port"
    script = " & ".join([*(f"{engine} {port}" for port in ports), "wait"])
    with running(["sh", "-c", script], directory / "log", {"PYTHONPATH": str(directory)}) as parent:

        def started() -> dict[int, psutil.Process]:
            return {
                int(one.cmdline()[-1]): one
                for one in psutil.Process(parent.pid).children()
                if "sglang.launch_server" in one.cmdline()
            }

        eventually(lambda: len(started()) == len(ports), within=10, what="engines started")
        yield parent, started()


def test_a_process_that_started_one_engine_leads_to_the_engine(tmp_path: Path) -> None:
    with shell(tmp_path, 40001) as (parent, engines):
        for pid in (parent.pid, engines[40001].pid):
            found = finder.engine_of(pid)
            assert found.process == engines[40001]
            assert found.kind == "sglang"
            assert found.name == "sglang-40001"


def test_a_process_that_started_several_engines_is_refused_with_their_pids(tmp_path: Path) -> None:
    """The first process of a machine or a container is such a process."""
    with shell(tmp_path, 40001, 40002) as (parent, engines):
        with pytest.raises(SettingsError) as raised:
            finder.engine_of(parent.pid)
        message = str(raised.value)
        assert f"--pid {parent.pid}: this process has started several engines" in message
        for engine in engines.values():
            assert f"{engine.pid} (SGLang)" in message
        assert finder.engine_of(engines[40002].pid).name == "sglang-40002"


def test_a_process_without_an_engine_is_the_first_process_of_an_unknown_one() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        found = finder.engine_of(process.pid)
        assert (found.process.pid, found.kind, found.url) == (process.pid, "", None)
        assert found.name == f"engine-pid-{process.pid}"
        process.kill()


def test_a_pid_that_is_not_in_use_is_an_error() -> None:
    assert not psutil.pid_exists(4194303)
    with pytest.raises(SettingsError, match="--pid 4194303: this process does not exist"):
        finder.engine_of(4194303)
