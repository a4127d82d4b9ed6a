"""Who runs on this machine, told from processes that only look like an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dynamometer.exporter import finder
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
    """It may be a worker's, or have the Rust server: what says so comes a moment later."""
    with subprocess.Popen(
        [sys.executable, "-m", "sglang.launch_server", "--model", "m", "--port", "1"],
        cwd=looks_like_an_engine,
        env={},
        stdin=subprocess.PIPE,
    ) as process:

        def found() -> list[finder.EngineProcess]:
            return [one for one in finder.find()[0] if one.process.pid == process.pid]

        assert found() == []
        eventually(found, within=10, what="one that never gets any is found all the same")
        (running,) = found()
        assert running.page_has_more is None
        assert process.stdin is not None
        process.stdin.close()
