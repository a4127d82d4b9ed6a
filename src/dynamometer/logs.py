"""Write the log of a process to standard error: one line per message, in colour on a terminal.

With `DYN_LOGGING_JSONL=1` each line is a JSON object instead. A thread writes the lines, because
the reader of standard error may be slow or stuck, and requests and scrapes must not wait for it.
"""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import os
import queue
import sys
import time
from contextlib import nullcontext, suppress
from typing import Final, TextIO

from dynamometer.settings import LOG_LEVELS

# The logger of the engine's output; each line of the output gets the prefix `[engine]`.
ENGINE_LOGGER: Final = "dynamometer.engine"

_MOST_LINES: Final = 10_000
_FLUSH_SECONDS: Final = 1.0
_COLOURS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31"}


def set_up(process: str, *, level: str, as_json: bool) -> None:
    """Write the project's log to standard error.

    Args:
        process: the name of this process in each line, such as `frontend` or `worker`.
        level: a key of `settings.LOG_LEVELS`.
        as_json: write one JSON object per line instead of text.
    """
    # Standard error may be closed (`2>&-`).
    stream = sys.stderr if sys.stderr is not None else io.StringIO()
    records: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_LINES)
    handler = _Handler(records)
    colour = stream.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(_JsonFormatter(process) if as_json else _TextFormatter(process, colour))
    _Listener(records, stream).start()
    logger = logging.getLogger("dynamometer")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(LOG_LEVELS[level])
    logging.getLogger(ENGINE_LOGGER).setLevel(LOG_LEVELS[level])
    # aiohttp logs a traceback for each malformed request; the client gets a 400 anyway.
    aiohttp_logger = logging.getLogger("aiohttp")
    aiohttp_logger.handlers[:] = [handler]
    aiohttp_logger.propagate = False
    aiohttp_logger.setLevel(logging.DEBUG if level in ("debug", "trace") else logging.CRITICAL)


def flush() -> None:
    """Wait until all lines are written, for at most a second."""
    for handler in logging.getLogger("dynamometer").handlers:
        handler.flush()


class _Handler(logging.handlers.QueueHandler):
    """Format and queue each record in the thread that logs; count records that do not fit.

    The reader of standard error may be stuck, so neither `emit` nor `flush` waits without a limit.
    """

    queue: queue.Queue[logging.LogRecord]
    # Guarded by the handler's lock.
    _dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a formatted record; `Handler.handle` holds the lock."""
        try:
            self._report_dropped()
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until all records are written, for at most a second."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        self._wait_until(deadline)
        with self.lock or nullcontext(), suppress(queue.Full):
            self._report_dropped()
        self._wait_until(deadline)

    def _report_dropped(self) -> None:
        if self._dropped:
            values = {"levelno": logging.WARNING, "levelname": "WARNING", "name": __name__}
            values["msg"] = f"{self._dropped} log lines were dropped: standard error was not read"
            self.queue.put_nowait(self.prepare(logging.makeLogRecord(values)))
            self._dropped = 0

    def _wait_until(self, deadline: float) -> None:
        with self.queue.all_tasks_done:
            self.queue.all_tasks_done.wait_for(
                lambda: not self.queue.unfinished_tasks, deadline - time.monotonic()
            )


class _Listener(logging.handlers.QueueListener):
    """Write queued records to a stream in a daemon thread.

    The stream is not wrapped in a `logging.StreamHandler`: at exit, `logging.shutdown` would wait
    for the lock of a handler whose write is stuck.
    """

    def __init__(self, records: queue.Queue[logging.LogRecord], stream: TextIO) -> None:
        super().__init__(records)
        self._stream = stream

    def handle(self, record: logging.LogRecord) -> None:
        """Write one record; errors of the stream are ignored."""
        with suppress(OSError, ValueError):
            self._stream.write(f"{record.msg}\n")
            self._stream.flush()


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str, colour: bool) -> None:
        super().__init__()
        self._process = process
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        engine = record.name == ENGINE_LOGGER
        prefix = f"[{'engine' if engine else self._process}]"
        message = printable(record.getMessage()).replace("\n", "\\n")
        if record.exc_info:
            message += "\n" + printable(self.formatException(record.exc_info))
        if record.levelno >= logging.WARNING and not engine:
            message = f"{record.levelname.lower()}: {message}"
        if not self._colour:
            return f"{prefix} {message}"
        colour = "2" if engine else _COLOURS.get(record.levelno, "")
        body = f"\x1b[{colour}m{message}\x1b[0m" if colour else message
        return f"\x1b[36m{prefix}\x1b[0m {body}"


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "target": record.name,
            "process": self._process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def printable(text: str) -> str:
    """Escape control characters and unpaired surrogates, so that any terminal can show `text`."""
    kept = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
    return kept.encode("utf-8", "backslashreplace").decode("utf-8")
