"""The log on standard error, also with a reader that is stuck or has closed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

LOG = """
import logging, sys
from dynamometer import logs
logs.set_up("worker", level="info", as_json={as_json})
log = logging.getLogger("dynamometer.x")
{body}
logs.flush()
"""
# A reader that is stuck until the process has logged more than the queue holds.
STUCK = """
import threading
stuck, released = threading.Event(), threading.Event()
write = sys.stderr.write
def slow(line):
    stuck.set()
    released.wait()
    return write(line)
sys.stderr.write = slow
log.info("first")
stuck.wait()
for i in range(10_005): log.info("x")
released.set()
"""


def logged(body: str, *, as_json: bool = False, flush: bool = True) -> str:
    program = LOG.format(as_json=as_json, body=body)
    done = subprocess.run(
        [sys.executable, "-c", program if flush else program.replace("logs.flush()", "")],
        stderr=subprocess.PIPE, text=True, timeout=20, check=True,
    )  # fmt: skip
    return done.stderr


def test_a_message_is_one_line_without_control_characters() -> None:
    assert logged(r"log.info('a\nb\x1b[31m%s', '\ud800')") == "[worker] a\\nb\\x1b[31m\\xd800\n"
    assert logged("log.warning('x'); log.debug('y')") == "[worker] warning: x\n"


def test_json_lines() -> None:
    line = json.loads(logged("log.info('hello')", as_json=True))
    assert (line["level"], line["process"], line["message"]) == ("INFO", "worker", "hello")


def test_all_lines_are_written_at_exit() -> None:
    expected = "".join(f"[worker] {number}\n" for number in range(5000))
    assert logged("for i in range(5000): log.info(i)") == expected
    assert logged("for i in range(5000): log.info(i)", flush=False) == expected


def test_a_traceback_follows_its_message() -> None:
    body = "try: 1 / 0\nexcept Exception: log.exception('failed')"
    first, *_, last = logged(body).splitlines()
    assert (first, last) == ("[worker] error: failed", "ZeroDivisionError: division by zero")


def test_dropped_lines_are_counted() -> None:
    lines = logged(STUCK).splitlines()
    assert len(lines) == 10_002
    assert lines[-1] == ("[worker] warning: 5 log lines were dropped: standard error was not read")
    message = json.loads(logged(STUCK, as_json=True).splitlines()[-1])["message"]
    assert message.startswith("5 log lines were dropped")


def test_a_reader_that_is_stuck_does_not_stop_the_process() -> None:
    """Standard error is a full pipe."""
    reading, writing = os.pipe()
    try:
        body = "for i in range(30_000): log.info('x' * 100)\nprint('went on')"
        done = subprocess.run(
            [sys.executable, "-c", LOG.format(as_json=False, body=body)],
            stderr=writing, stdout=subprocess.PIPE, text=True, timeout=20, check=True,
        )  # fmt: skip
        assert done.stdout == "went on\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_closed_standard_error_does_not_end_the_process() -> None:
    program = LOG.format(as_json=False, body="log.info('x'); print('went on')")
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        stdout=subprocess.PIPE, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout == "went on\n"
