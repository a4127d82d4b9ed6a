"""The thread that serves a user's own process, where it cannot."""

from __future__ import annotations

import logging
import threading

import pytest
from aiohttp import web

from dynamometer.http import addresses
from dynamometer.runtime.system_server import SystemServer


def test_what_keeps_it_from_serving_is_raised_where_it_was_asked_for(
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
