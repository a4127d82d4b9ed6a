"""Hanging file systems and a lack of descriptors: the page and the other engines continue."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.http.addresses import free_port
from exporting import Exporter, Page, Writer, exporter
from stack import eventually, http

pytestmark = pytest.mark.slow

# The interpreter runs this at its start. Calls with a path below HUNG_DIRECTORY do not return while
# HUNG_FLAG exists.
SITECUSTOMIZE = """
import os, time

directory, flag = os.environ["HUNG_DIRECTORY"], os.environ["HUNG_FLAG"]
stat = os.stat

def hanging(function):
    def call(path, *args, **kwargs):
        while isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(directory):
            try:
                stat(flag)
            except OSError:
                break
            time.sleep(0.02)
        return function(path, *args, **kwargs)
    return call

for name in ("access", "stat", "lstat", "open", "listdir", "scandir"):
    setattr(os, name, hanging(getattr(os, name)))
"""

BROKEN_SEARCH = """
import sys
from dynamometer.exporter import finder

calls = []

def find(known):
    calls.append(known)
    if len(calls) == 1:
        raise RuntimeError("a fault of ours")
    print("searched again", file=sys.stderr, flush=True)
    return finder.Search()

finder.find = find
"""


class Hanging:
    """A directory on a file system that hangs while `flag` exists."""

    def __init__(self, root: Path) -> None:
        self.files = root / "hung"
        self.files.mkdir()
        self._flag = root / "flag"
        code = root / "code"
        code.mkdir()
        (code / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
        self.environment = {
            "PYTHONPATH": f"{code}:{os.environ.get('PYTHONPATH', '')}",
            "HUNG_DIRECTORY": str(self.files),
            "HUNG_FLAG": str(self._flag),
        }

    def hang(self) -> None:
        self._flag.touch()

    def go_on(self) -> None:
        self._flag.unlink()


@pytest.fixture
def hanging(tmp_path: Path) -> Hanging:
    return Hanging(tmp_path)


@pytest.fixture
def good(tmp_path: Path) -> Iterator[Path]:
    """The files of a healthy engine."""
    files = tmp_path / "good"
    files.mkdir()
    with Writer(files, 2.0):
        yield files


def busy(found: Exporter) -> dict[str, float]:
    return {
        sample.labels["engine"]: sample.value
        for family in parse(found.page())
        for sample in family.samples
        if sample.name == "app_busy"
    }


def assert_answers(found: Exporter) -> None:
    """Check that /live and /health answer at once, and the page after the source's deadline."""
    for path, seconds in (("live", 1.0), ("health", 1.0), ("metrics", 8.0)):
        begun = time.monotonic()
        assert http(f"{found.url}/{path}").status in (200, 503)
        assert time.monotonic() - begun < seconds, path


def test_a_file_system_that_hangs_costs_its_engine_alone(
    hanging: Hanging, good: Path, tmp_path: Path
) -> None:
    flags = ("--multiproc-dir", f"a={hanging.files}", "--multiproc-dir", f"b={good}")
    with (
        Writer(hanging.files, 1.0),
        exporter(tmp_path, *flags, "--prefix", "app_", **hanging.environment) as found,
    ):
        found.wait_until_ready("a").wait_until_ready("b")
        assert busy(found) == {"a": 1.0, "b": 2.0}
        hanging.hang()
        eventually(lambda: not found.ready("a"), within=15, what=f"it hangs\n{found.log}")
        assert_answers(found)
        assert "no answer within 5 s" in found.health()[1]["reasons"]["a"]
        assert found.ready("b")
        assert busy(found) == {"b": 2.0}
        hanging.go_on()
        found.wait_until_ready("a")
        assert busy(found) == {"a": 1.0, "b": 2.0}
        assert "Traceback" not in found.log


def test_a_file_system_that_hangs_from_the_start_keeps_no_process_alive(
    hanging: Hanging, good: Path, tmp_path: Path
) -> None:
    flags = ("--multiproc-dir", f"a={hanging.files}", "--multiproc-dir", f"b={good}")
    hanging.hang()
    with exporter(tmp_path, *flags, "--prefix", "app_", **hanging.environment) as found:
        found.wait_until_ready("b")
        assert_answers(found)
        assert busy(found) == {"b": 2.0}
        found.process.signal(signal.SIGINT)
        assert found.process.wait(within=5) == 0
        assert "Traceback" not in found.log


def test_gauges_leave_with_the_engine_although_its_files_hang(
    hanging: Hanging, tmp_path: Path
) -> None:
    """The URL shows the end of the engine while its writers cannot be checked."""
    server = Page(free_port(), "", paths=("/health",))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    flags = ("--multiproc-dir", f"a={hanging.files}", "--engine-url", f"a={url}")
    with (
        Writer(hanging.files, 1.0),
        exporter(tmp_path, *flags, "--prefix", "app_", **hanging.environment) as found,
    ):
        found.wait_until_ready("a")
        hanging.hang()
        found.process.wait_for("files: no answer within 5 s", within=20)
        assert found.ready("a")
        server.end()
        eventually(lambda: not found.ready("a"), within=8, what=f"ended\n{found.log}")


def test_an_exporter_without_free_descriptors_goes_on(good: Path, tmp_path: Path) -> None:
    flags = ("--multiproc-dir", f"b={good}", "--prefix", "app_")
    with exporter(tmp_path, *flags) as found, exporter(tmp_path) as searching:
        found.wait_until_ready("b")
        for one in (found, searching):
            limits = resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        searching.process.wait_for("Too many open files", within=30)
        found.process.wait_for("Too many open files", within=30)
        host, _, port = found.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))):
            found.process.wait_for("accept.*: Too many open files", within=10)
        for one in (found, searching):
            resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, limits)
            assert one.process.running
            assert "Traceback" not in one.log
        found.wait_until_ready("b")
        eventually(lambda: busy(found) == {"b": 2.0}, within=10, what=f"{found.log}")


def test_a_fault_of_the_search_ends_no_search(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(BROKEN_SEARCH, encoding="utf-8")
    path = f"{code}:{os.environ.get('PYTHONPATH', '')}"
    with exporter(tmp_path, PYTHONPATH=path) as found:
        found.process.wait_for("search failed", within=10)
        found.process.wait_for("searched again", within=10)
        assert found.process.running
