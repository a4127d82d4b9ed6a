"""The files that `dyno demo --observe` writes and removes."""

from __future__ import annotations

import subprocess
from pathlib import Path

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
