"""One tiny model, one frontend and one real engine serve the whole run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from own_files import Files
from processes import end_orphans_afterwards
from stack import Stack

ROOT = Path(__file__).parent.parent


# Tests do not assert speed: an example may take long on a slow machine.
hypothesis.settings.register_profile("dynamometer", deadline=None)
hypothesis.settings.load_profile("dynamometer")


orphans = pytest.StashKey["subprocess.Popen[bytes]"]()


def pytest_sessionstart(session: pytest.Session) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    for variable in [name for name in os.environ if name.startswith("DYN_")]:
        del os.environ[variable]
    session.config.stash[orphans] = end_orphans_afterwards()


# Tests that start two engines of their own, which must not run beside the engine of `stack`.
_BEFORE_STACK = {"disagg", "nodes", "demo"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in _BEFORE_STACK)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the processes that tests left behind. In CI, fail the run for a skipped test: a
    prerequisite is missing.
    """
    session.config.stash[orphans].communicate(timeout=30)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter and reporter.stats.get("skipped"):
        reporter.write_line("\na test was skipped in CI: that is a failure")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write the counts of the run as its last line in CI, in a form independent of pytest."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter:
        counts = {
            word: sum(len(reporter.stats.get(kind, ())) for kind in kinds)
            for word, kinds in (
                ("passed", ("passed",)),
                ("failed", ("failed", "error")),
                ("skipped", ("skipped",)),
            )
        }
        reporter.write_line(", ".join(f"{count} {word}" for word, count in counts.items()))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run(
        [sys.executable, "-m", "dynamometer.cli", "tiny-model", str(directory)], check=True
    )
    return directory


@pytest.fixture(scope="session")
def stack(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start a frontend and a worker, on the documented ports if they are free; wait until ready."""
    directory = tmp_path_factory.mktemp("stack")
    found = Stack(directory, tiny_model, directory / "discovery")
    flags = ("--model", str(tiny_model), "--enable-metrics", "--hang-timeout", "15")
    with (
        found.run_frontend(port=_port(8000)) as (frontend, url),
        found.run_worker(*flags, system_port=_port(8081)) as worker,
    ):
        found.frontend, found.frontend_url, found.worker = frontend, url, worker
        worker.wait_until_ready()
        yield found


@pytest.fixture
def files() -> Iterator[Files]:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="endings-") as memory,
        tempfile.TemporaryDirectory(prefix="endings-") as temporary,
    ):
        yield Files(Path(memory), Path(temporary))


def _port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted
