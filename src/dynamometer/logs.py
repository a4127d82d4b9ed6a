"""What a process says on standard error: one line a message, coloured on a terminal only.

With `DYN_LOGGING_JSONL=1` each line is a JSON object instead. A thread writes the lines: whoever
reads them may be slow, or stuck, and requests and pages must not wait for him.
"""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import sys
import threading
import time
from typing import Final, TextIO

# The engine's own lines come through this logger, so that they carry its prefix.
ENGINE_LOGGER: Final = "dynamometer.engine"

_MOST_LINES: Final = 10_000
_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
_COLOURS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31"}


def set_up(process: str, *, level: str, as_json: bool) -> None:
    """Send the project's messages to standard error.

    Args:
        process: what this process is, `frontend` or `worker`; each line begins with it.
        level: one of `settings.LOG_LEVELS`.
        as_json: a JSON object a line instead of text.
    """
    stream = sys.stderr if sys.stderr is not None else io.StringIO()  # closed: `2>&-`
    handler = _Handler(_Writer(stream))
    colour = stream.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(_JsonFormatter(process) if as_json else _TextFormatter(process, colour))
    logger = logging.getLogger("dynamometer")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(_LEVELS[level])
    logging.getLogger(ENGINE_LOGGER).setLevel(_LEVELS[level])
    # A client's nonsense on a socket is answered with 400; its traceback is for debugging.
    access = logging.getLogger("aiohttp")
    access.handlers[:] = [handler]
    access.propagate = False
    access.setLevel(logging.DEBUG if level in ("debug", "trace") else logging.CRITICAL)


def flush() -> None:
    """Wait until all lines are written, a second at most."""
    for handler in logging.getLogger("dynamometer").handlers:
        handler.flush()


class _Writer:
    """A thread that writes lines; what it cannot keep up with is dropped, and counted."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(_MOST_LINES)
        self._dropped = 0
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        self._idle.clear()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def wait(self) -> None:
        self._idle.wait(1)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            dropped, self._dropped = self._dropped, 0
            try:
                if dropped:
                    self._stream.write(f"[log] {dropped} lines were dropped: nobody read them\n")
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads it any more
            if self._lines.empty():
                self._idle.set()


class _Handler(logging.Handler):
    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(self.format(record))

    def flush(self) -> None:
        self._writer.wait()


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
        tint = "2" if engine else _COLOURS.get(record.levelno, "")
        body = f"\x1b[{tint}m{message}\x1b[0m" if tint else message
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
    """`text` without what a terminal would act on, and without what cannot be encoded."""
    kept = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
    return kept.encode("utf-8", "backslashreplace").decode("utf-8")
