"""The start of a group, where its processes fail."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dynamometer.errors import FrontendError
from dynamometer.frontend.process_group import ProcessGroup
from dynamometer.frontend.shared_port import SharedPort
from dynamometer.metrics.refresh import PageRequest
from dynamometer.process import private_directories
from dynamometer.process.signals import Stop


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedPort]:
    monkeypatch.setattr(
        private_directories, "create_memory", lambda: private_directories.create(tmp_path / "m")
    )
    port = SharedPort("127.0.0.1", 0)
    yield port
    port.close()


@asynccontextmanager
async def group(port: SharedPort, files: Path) -> AsyncIterator[tuple[ProcessGroup, list[int]]]:
    retired: list[int] = []

    async def page(_: PageRequest) -> bytes:
        return b""

    yield (
        ProcessGroup(
            3, port=port, arguments=(), files=files, page=page, count_restart=lambda: None,
            retire=retired.append,
        ),
        retired,
    )  # fmt: skip


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


async def test_a_process_that_fails_at_its_start_is_the_error_of_all(
    port: SharedPort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'case "$DYNAMOMETER_FRONTEND_MEMBER" in 2*) exit 3;; esac; exec sleep 60'
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", text))
    async with group(port, tmp_path) as (processes, retired), asyncio.timeout(20):
        with pytest.raises(FrontendError, match=r"process 2 .* ended with exit code 3"):
            await processes.run(Stop(supervised=True), drain_seconds=1)
        assert processes.pids == []
        assert len(retired) == 1


async def test_a_program_that_is_missing_is_an_error(
    port: SharedPort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    async with group(port, tmp_path) as (processes, _), asyncio.timeout(20):
        with pytest.raises(FrontendError, match=r"cannot start .No such file"):
            await processes.run(Stop(supervised=True), drain_seconds=1)
