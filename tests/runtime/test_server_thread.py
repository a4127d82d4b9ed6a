"""Faults of the thread that serves a user's own process."""

from __future__ import annotations

import logging
import threading

import pytest
from aiohttp import web

from dynamometer.http import addresses
from dynamometer.runtime.server_thread import SystemServer


def test_a_fault_of_the_thread_is_raised_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_: web.Application) -> None:
        raise OSError(24, "Too many open files")

    app = web.Application()
    app.on_startup.append(fail)
    listener = addresses.listen("127.0.0.1", 0, setting="")
    with caplog.at_level(logging.INFO), pytest.raises(OSError, match="Too many open files"):
        SystemServer(app, listener)
    assert "metrics and health" not in caplog.text
    assert listener.fileno() == -1
    assert "system" not in {thread.name for thread in threading.enumerate()}
