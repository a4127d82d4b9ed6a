"""Whether a client has had all of a stream of server-sent events that nobody has read.

A stream says by its last event that nothing more comes, and many clients (OpenAI's own among them)
close the connection at that, before the HTTP answer has ended. So do they at an error, which is a
last event too. Such a client has not gone away.
"""

from __future__ import annotations

import re
from typing import Final

# OpenAI's chats and completions, and SGLang's own route; Anthropic's messages; OpenAI's responses.
# A line of JSON holds no line break: what is inside an event cannot look like this.
_LAST_EVENT: Final = re.compile(
    rb"(?:\A|[\r\n])"
    rb"(?:data: ?(?:\[DONE\]|\{\"error\": ?[{\"][^\r\n]*|\{\"object\": ?\"error\"[^\r\n]*)"
    rb"|event: ?(?:error|message_stop|response\.(?:completed|incomplete|failed)))"
    rb"(?:(?:\r?\n|\r)[^\r\n]+)*"
    rb"(?:\r?\n\r?\n|\r\r)\Z"
)
_EMPTY_LINES: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
# Of an event's beginning, and of its end, as many bytes are kept: more than its first line has.
_KEPT: Final = 64


class StreamEnd:
    """The event that a client was sent last; looked at only when it closes the connection.

    An event may come in many pieces (a whole answer is in the last one of `/v1/responses`): of
    those before the last piece its beginning and its last bytes are kept.
    """

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        """Nothing was sent yet."""
        self._before = self._last = b""

    def sent(self, chunk: bytes) -> None:
        """The client was sent `chunk`."""
        if self._last[-2:] == b"\n\n":  # as nearly every chunk's end
            self._before = b""
        else:
            self._before = _of_open_event(self._before + self._last)
        self._last = chunk

    @property
    def reached(self) -> bool:
        """Whether what was sent ends with a stream's last event, its empty line included."""
        return _LAST_EVENT.search(self._before + self._last) is not None


def _of_open_event(sent: bytes) -> bytes:
    """What is to be kept of the last event of `sent`, which has not ended."""
    begin = 0
    lines_end = max(sent.rfind(b"\n"), sent.rfind(b"\r")) + 1  # long is a line, not their number
    for line in _EMPTY_LINES:
        at = sent.rfind(line, begin, lines_end)
        if at >= 0:
            begin = at + len(line)
    event = sent[begin:]
    if len(event) <= 2 * _KEPT:
        return event
    return event[:_KEPT] + event[-_KEPT:]
