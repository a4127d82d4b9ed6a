"""The command line of the demo."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from dynamometer import arguments
from dynamometer.demo import app
from dynamometer.errors import DirectoryError
from dynamometer.process.locked_directories import locked

_DESCRIPTION = """\
Try everything at once: create a tiny model, start a frontend and a worker with the real SGLang,
send a request and a few streams, and show a part of the /metrics pages. With --disaggregated, two
workers answer each request together: one with the prefill, one with the decode phase. With
--observe, a Prometheus scrapes these pages, and answers three questions.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the demo's flags.

    Args:
        program: the name of the command in its help.
    """
    result = arguments.parser(
        program, _DESCRIPTION, "examples:\n  dyno demo\n  dyno demo --disaggregated --observe\n"
    )
    result.add_argument(
        "--directory",
        type=Path,
        default=Path(".demo"),
        help="directory of the model and the logs (default: .demo)",
    )
    result.add_argument(
        "--disaggregated",
        action="store_true",
        help="start a prefill worker and a decode worker, between which the KV cache is "
        "transferred over TCP",
    )
    result.add_argument(
        "--observe",
        action="store_true",
        help="also start Prometheus, as dyno observe does, and print the answers to three queries",
    )
    arguments.add_engine_python(result, "SGLang")
    return result


def main(argv: Sequence[str], program: str = "dyno demo") -> int:
    """Run the demo, and return the exit code.

    Raises:
        DynamometerError: A process or a request failed; the message is for the user.
    """
    flags = parser(program).parse_args(list(argv))
    observed = flags.directory / "observe"
    with contextlib.ExitStack() as stack:
        if flags.observe:
            try:
                stack.enter_context(locked(observed, wait=False))
            except BlockingIOError:
                raise DirectoryError(
                    f"another dyno demo or dyno observe uses {observed}: end it first, or choose "
                    "another --directory"
                ) from None
        asyncio.run(
            app.run(
                flags.directory,
                flags.engine_python,
                disaggregated=flags.disaggregated,
                observe=flags.observe,
            )
        )
    return 0
