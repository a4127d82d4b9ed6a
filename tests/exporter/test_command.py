"""The command line of `dyno exporter`: its help, and errors that name the flag."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from processes import PYTHON


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamometer", "exporter", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for flag in ("--multiproc-dir", "--engine-url", "--pid", "--prefix", "--system-port"):
        assert re.search(rf"^  {flag}", done.stdout, re.MULTILINE)
    assert "examples:" in done.stdout


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--pid", "999999999"], "--pid 999999999"),
        (["--pid", "x"], "--pid x"),
        (["--engine-url", "ftp://x"], "--engine-url ftp://x"),
        (["--engine-url", "http://"], "--engine-url http://"),
        (["--engine-url", "a:1", "--engine-url", "b:1"], "--engine-url one=a:1"),
        (["--health-interval", "soon"], "--health-interval"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], named: str) -> None:
    done = subprocess.run(
        [PYTHON, "-m", "dynamometer", "exporter", "--system-port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
