"""The files that `dyno demo --observe` writes and removes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dynamometer.process.locked_directories import locked
from processes import PYTHON
from prometheus import needs_prometheus


@needs_prometheus
def test_files_of_another_origin_stay(tmp_path: Path) -> None:
    notes = tmp_path / "observe" / "notes.txt"
    own = tmp_path / "observe" / "prometheus" / "prometheus.yml"
    data = tmp_path / "observe" / "prometheus" / "data" / "wal"
    data.mkdir(parents=True)
    for path in (notes, own):
        path.write_text("the user's own")
    command = [PYTHON, "-m", "dynamometer.cli", "demo", "--observe", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"{own} exists and was not written by dyno observe" in done.stderr
    assert {path.read_text() for path in (notes, own)} == {"the user's own"}
    assert data.is_dir()


@needs_prometheus
def test_the_directory_of_a_running_one_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "observe" / "prometheus" / "data" / "wal"
    command = [PYTHON, "-m", "dynamometer.cli", "demo", "--observe", "--directory", str(tmp_path)]
    with locked(tmp_path / "observe", wait=False):
        data.mkdir(parents=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"another dyno demo or dyno observe uses {tmp_path / 'observe'}" in done.stderr
    assert data.is_dir()
