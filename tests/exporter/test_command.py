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


def test_a_header_without_an_address_is_an_error_before_a_port_is_open() -> None:
    done = subprocess.run(
        [PYTHON, "-m", "dynamometer", "exporter", "--system-port", "0", "--engine-header", "A: b"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --engine-header: needs --engine-url")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--pid", "999999999"], "--pid 999999999"),
        (["--pid", "x"], "--pid x"),
        (["--engine-url", "ftp://x"], "--engine-url ftp://x"),
        (["--engine-url", "http://"], "--engine-url http://"),
        (["--engine-url", "a:1", "--engine-url", "b:1"], "--engine-url one=a:1"),
        (["--health-interval", "soon"], "--health-interval"),
        (["--multiproc-dir", "a="], "--multiproc-dir a=: must be a directory"),
        (["--health-path", "foo"], "--health-path: 'foo' must be a path that begins with '/'"),
        (["--health-path", "/a b"], "--health-path: '/a b' must be a path"),
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
