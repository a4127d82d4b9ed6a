"""The event loop of a process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Final, TypeVar

import uvloop

Result = TypeVar("Result")

# Python's default is 5 ms: so long a thread that renders a page could keep the loop waiting.
SWITCH_SECONDS: Final = 0.0005


def run(main: Coroutine[object, object, Result]) -> Result:
    """Run `main` on uvloop until it is done; its result."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
