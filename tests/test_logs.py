"""What processes say, and who need not wait for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SAY = """
import logging, sys
from dynamometer import logs
logs.set_up("worker", level="info", as_json={as_json})
log = logging.getLogger("dynamometer.x")
{body}
logs.flush()
"""


def said(body: str, *, as_json: bool = False, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SAY.format(as_json=as_json, body=body)],
        stderr=subprocess.PIPE, text=True, timeout=20, check=True,
    )  # fmt: skip
    return done.stderr


def test_a_message_is_one_line_that_no_terminal_acts_on() -> None:
    assert said(r"log.info('a\nb\x1b[31m%s', '\ud800')") == "[worker] a\\nb\\x1b[31m\\xd800\n"
    assert said("log.warning('x'); log.debug('y')") == "[worker] warning: x\n"


def test_json_lines() -> None:
    line = json.loads(said("log.info('hello')", as_json=True))
    assert (line["level"], line["process"], line["message"]) == ("INFO", "worker", "hello")


def test_nobody_who_reads_the_log_holds_up_the_process() -> None:
    """A pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    try:
        body = "for i in range(30_000): log.info('x' * 100)\nprint('went on')"
        done = subprocess.run(
            [sys.executable, "-c", SAY.format(as_json=False, body=body)],
            stderr=writing, stdout=subprocess.PIPE, text=True, timeout=20, check=True,
        )  # fmt: skip
        assert done.stdout == "went on\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_closed_standard_error_is_no_reason_to_end() -> None:
    program = SAY.format(as_json=False, body="log.info('x'); print('went on')")
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        stdout=subprocess.PIPE, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout == "went on\n"
