"""The directories of a worker, and their removal after killed workers."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dynamometer.errors import DirectoryError
from dynamometer.process import private_directories
from dynamometer.worker.run_directory import run_directory

KILLED = """
import os, signal, subprocess, sys
from pathlib import Path
from dynamometer.process import private_directories
private_directories.create_memory = lambda: private_directories.create(Path(sys.argv[1]))
from dynamometer.process.children import identities
from dynamometer.runtime.identity import WORKER_MARK
from dynamometer.worker.run_directory import run_directory
import psutil
with run_directory(7) as directory:
    # With a pipe of ours it would be waited for, until it ends by itself.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(["sleep", "60"], start_new_session=True, **quiet)
    directory.record(identities([psutil.Process(child.pid)]), frozenset())
    # A process that started after the last record.
    environment = {WORKER_MARK: directory.mark, "PATH": os.environ["PATH"]}
    later = subprocess.Popen(["sleep", "60"], start_new_session=True, env=environment, **quiet)
    print(child.pid, later.pid, directory.temporary, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "memory"
    monkeypatch.setattr(
        private_directories, "create_memory", lambda: private_directories.create(base)
    )
    return base


def test_it_is_private_and_gone_afterwards(memory: Path) -> None:
    with run_directory(7) as directory:
        assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(directory.temporary.stat().st_mode) == 0o700
        (directory.path / "metrics").mkdir()
    assert not directory.path.exists()
    assert not directory.temporary.exists()
    assert not memory.exists()


def test_a_living_workers_directory_is_left_alone(memory: Path) -> None:
    with run_directory(7) as one, run_directory(8) as two:
        assert one.path.exists()
        assert two.path.exists()


def test_what_a_killed_worker_left_is_cleared_by_the_next(memory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(memory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    *children, temporary = done.stdout.split()
    assert Path(temporary).exists()
    assert (memory / f"{7:016x}").exists()
    with run_directory(8):
        assert [path.name for path in memory.iterdir()] == [f"{8:016x}"]
    assert not Path(temporary).exists()
    for child in children:
        state = Path(f"/proc/{child}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"processes": [[1]]}', '{"processes": [["x", 1], [-1, 2]]}']
)
def test_a_note_that_cannot_be_read_hinders_nothing(memory: Path, note: str) -> None:
    left = memory / f"{7:016x}"
    left.mkdir(parents=True, mode=0o700)
    memory.chmod(0o700)
    (left / "engine.json").write_text(note)
    with run_directory(8):
        assert not left.exists()


def test_the_directory_may_be_removed_under_a_worker(memory: Path) -> None:
    with run_directory(7) as directory:
        shutil.rmtree(memory)
        directory.record(frozenset(), frozenset())
    with run_directory(8):
        pass


def test_a_second_worker_with_the_id_of_a_live_one_is_an_error_and_touches_nothing(
    memory: Path,
) -> None:
    with run_directory(7) as directory:
        (directory.path / "metrics").mkdir()
        before = sorted(directory.path.iterdir())
        with (
            pytest.raises(DirectoryError, match=f"another worker with the id {7:016x} is running"),
            run_directory(7),
        ):
            pass
        assert sorted(directory.path.iterdir()) == before
        assert directory.temporary.exists()
        with run_directory(8):
            assert sorted(directory.path.iterdir()) == before
    with run_directory(7):
        pass
