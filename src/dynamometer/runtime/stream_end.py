"""Whether a client has had all of a stream of server-sent events.

A stream says by its last event that nothing more comes, and many clients (OpenAI's own among them)
close the connection at that, before the HTTP answer has ended. Such a client has not gone away.
"""

from __future__ import annotations

import re
from typing import Final

# OpenAI's chats and completions, and SGLang's own route; Anthropic's messages; OpenAI's responses.
# A line of JSON holds no line break: what is inside an event cannot look like this.
_LAST_EVENT: Final = re.compile(
    rb"(?:\A|\n)"
    rb"(?:data: ?\[DONE\]"
    rb"|event: ?(?:message_stop|response\.(?:completed|incomplete|failed))\r?\n[^\n]*)"
    rb"\r?\n\r?\n\Z"
)


class StreamEnd:
    """The last bytes that a client was sent; looked at only when it closes the connection."""

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        """Nothing was sent yet."""
        self._before = self._last = b""

    def sent(self, chunk: bytes) -> None:
        """The client was sent `chunk`."""
        self._before, self._last = self._last, chunk

    @property
    def reached(self) -> bool:
        """Whether what was sent ends with a stream's last event; in two pieces at most."""
        return _LAST_EVENT.search(self._before + self._last) is not None
