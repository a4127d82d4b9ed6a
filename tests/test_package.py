"""The package as users install it: sdist and wheel, in a fresh environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dynamometer import __version__
from dynamometer.observability.dashboards import DASHBOARDS, path

ROOT = Path(__file__).parent.parent


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_of_the_sdist_installs_without_the_engine(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"dynamometer-{__version__}-py3-none-any.whl"
    assert (tmp_path / f"dynamometer-{__version__}.tar.gz").exists()
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "py.typed",
        "engines/sglang_cpu/requirements.txt",
        "engines/sglang_cpu/checkpoint.py",
        "observability/files/runbooks.md",
        *(f"observability/files/dashboards/{path(one).name}" for one in DASHBOARDS),
    ):
        assert f"dynamometer/{needed}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    assert run(tmp_path / "venv/bin/dyno", "--version") == f"dynamometer {__version__}\n"
    for module in ("frontend", "sglang"):
        assert "usage" in run(python, "-m", f"dynamometer.{module}", "--help")
    installed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert "torch" not in installed
    assert "sglang" not in installed
