"""The control socket: who can reach it, and a worker without one."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import aiohttp
import pytest

from dynamometer.process import private_directories
from dynamometer.process.signals import InFlight
from dynamometer.runtime.identity import hexadecimal
from dynamometer.runtime.lifecycle import Lifecycle
from dynamometer.worker.control import ROUTE, controlled, socket_path
from dynamometer.worker.run_directory import run_directory
from dynamometer.worker.traffic import Traffic


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(Lifecycle(0), InFlight(), delay=0)


async def publish() -> None:
    pass


async def test_the_socket_is_in_the_workers_private_directory(
    traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "memory"
    monkeypatch.setattr(
        private_directories, "create_memory", lambda: private_directories.create(base)
    )
    with run_directory(7) as directory:
        async with controlled(directory.path, traffic, publish):
            path = socket_path(7)
            assert path.parent == directory.path
            assert path.parent.name == hexadecimal(7)
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            connector = aiohttp.UnixConnector(str(path))
            async with aiohttp.ClientSession(connector=connector) as session:
                async with session.post(f"http://worker{ROUTE}") as answer:
                    assert (await answer.json())["drained"] is True
                async with session.delete(f"http://worker{ROUTE}") as answer:
                    assert (await answer.json())["drained"] is False
    assert not base.exists()


async def test_a_worker_without_a_control_socket_serves_and_reports_that(
    traffic: Traffic, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dynamometer")
    directory = tmp_path / ("long" * 30)  # the path of a Unix socket has 107 bytes at most
    directory.mkdir()
    async with controlled(directory, traffic, publish):
        assert "dyno drain cannot reach this worker" in caplog.text
