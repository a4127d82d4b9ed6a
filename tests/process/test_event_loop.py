"""The start of a process's event loop."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from dynamometer.process import event_loop


def test_ctrl_c_before_the_first_step_leaves_no_coroutine_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        raise AssertionError

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio.Runner, "run", interrupt)
    coroutine = main()
    with pytest.raises(KeyboardInterrupt):
        event_loop.run(coroutine, use_uvloop=False)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
