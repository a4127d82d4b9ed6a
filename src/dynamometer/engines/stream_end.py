"""Detect that a client has received a whole stream of server-sent events, without parsing it.

The last event announces the end of the stream, and many clients (OpenAI's own among them)
close the connection at this event or at an error, before the HTTP response has ended. Such a client
has not aborted its request.
"""

from __future__ import annotations

import re
from typing import Final

# OpenAI's chats and completions, and SGLang's own route; Anthropic's messages; OpenAI's responses.
# The JSON in an event has no line breaks, so a match cannot begin inside an event.
_LAST_EVENT: Final = re.compile(
    rb"(?:\A|[\r\n])"
    rb"(?:data: ?(?:\[DONE\]|\{\"error\": ?[{\"][^\r\n]*|\{\"object\": ?\"error\"[^\r\n]*)"
    rb"|event: ?(?:error|message_stop|response\.(?:completed|incomplete|failed)))"
    rb"(?:(?:\r?\n|\r)[^\r\n]+)*"
    rb"(?:\r?\n\r?\n|\r\r)\Z"
)
_EMPTY_LINES: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
# The number of bytes kept at the beginning and at the end of an event; the first line is shorter.
_KEPT: Final = 64


class StreamEnd:
    """The last event that a client received, which is parsed only when the client disconnects.

    An event may arrive in many chunks (the last event of `/v1/responses` contains a whole answer).
    Of the chunks before the last chunk, only the beginning and the end of the event are kept.
    """

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        self._before = self._last = b""

    def add_chunk(self, chunk: bytes) -> None:
        """Add a chunk that the client received."""
        if self._last[-2:] == b"\n\n":  # nearly every chunk ends an event
            self._before = b""
        else:
            self._before = _shorten(self._before + self._last)
        self._last = chunk

    @property
    def reached(self) -> bool:
        """True if the received bytes end with the last event of a stream and its empty line."""
        return _LAST_EVENT.search(self._before + self._last) is not None


def _shorten(received: bytes) -> bytes:
    """Return the beginning and the end of the incomplete event at the end of `received`."""
    begin = 0
    # An empty line cannot follow the last line ending, so the long rest is not searched.
    lines_end = max(received.rfind(b"\n"), received.rfind(b"\r")) + 1
    for line in _EMPTY_LINES:
        at = received.rfind(line, begin, lines_end)
        if at >= 0:
            begin = at + len(line)
    event = received[begin:]
    if len(event) <= 2 * _KEPT:
        return event
    return event[:_KEPT] + event[-_KEPT:]
