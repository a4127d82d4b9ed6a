"""The event loop of a process."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import logging
import os
import resource
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from dynamometer.errors import SettingsError
from dynamometer.process.adopted import ignore_parents_signal, reap_repeatedly
from dynamometer.process.blocking import DaemonThreads
from dynamometer.process.tasks import restarting

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# A thread that renders a page can delay the event loop for this time; Python's default is 5 ms.
SWITCH_SECONDS: Final = 0.0005
_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
# With a lower limit of open files, uvloop fails at its start and prints tracebacks.
LEAST_OPEN_FILES: Final = 32


def run(
    main: Coroutine[object, object, Result], *, use_uvloop: bool = True, adopts: bool = False
) -> Result:
    """Run `main` on an event loop, and return its result.

    A call of `asyncio.to_thread` that hangs does not keep the process alive.

    Args:
        main: the coroutine to run.
        use_uvloop: run on uvloop, which relays streams faster; asyncio's own event loop needs two
            megabytes less memory.
        adopts: this process adopts orphans: reap them, and ignore SIGQUIT, which they may send to
            it. As pid 1, a process always does.

    Raises:
        SettingsError: The limit of open files is too low to start.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < LEAST_OPEN_FILES and use_uvloop:
        main.close()
        raise SettingsError(
            f"the limit of open files is {allowed}, and this process needs {LEAST_OPEN_FILES} to "
            "start: raise the limit (ulimit -n, LimitNOFILE=)"
        )
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # the objects of imported modules are never garbage: no collection visits them
    factory = importlib.import_module("uvloop").new_event_loop if use_uvloop else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop().set_default_executor(DaemonThreads())
        runner.get_loop().set_exception_handler(_report)
        try:
            if not adopts and os.getpid() != 1:
                return runner.run(main)
            ignore_parents_signal()
            reaping = _run_and_reap(main)
            try:
                return runner.run(reaping)
            finally:
                reaping.close()
        finally:
            main.close()  # Ctrl-C may end `run` before the coroutine starts


async def _run_and_reap(main: Coroutine[object, object, Result]) -> Result:
    async with restarting(reap_repeatedly, name="reaping"):
        return await main


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log exhausted descriptors or memory in one line, and any other fault as asyncio does."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _SHORTAGE:
        logger.warning("%s: %s", context.get("message"), error.strerror)
    else:
        loop.default_exception_handler(context)
