"""The last lines of an engine's log that `/health` may show."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

_LINES: Final = 10
_LINE_BYTES: Final = 400
_LONGEST_TEXT: Final = 4000  # longer texts would take long to search
_MASK: Final = "***"
# Secrets as members (`api_key='...'`), flags (`--api-key ...`), headers and parts of a URL.
_VALUE: Final = r"(?:'[^']*'|\"[^\"]*\"|[^\s,;)}\]]+)"
_SECRETS: Final = (
    rf"((?:api[_-]?key|access[_-]?key|secret|passwo?r?d)['\"]?\s*[=:]\s*){_VALUE}",
    r"(\bapi key provided: )\S+",
    # Not a number of tokens, as in "#new-token: 43".
    rf"((?:_|['\"?&])token(?:\s*=|['\"]\s*[=:])\s*){_VALUE}",
    r"(--(?:[a-z]+-){0,4}(?:key|token|secret|password)[ =])\S+",
    # The words of a command line, as Python shows a list.
    r"(--(?:[a-z]+-){0,4}(?:key|token|secret|password)['\"], )(?:'[^']*'|\"[^\"]*\")",
    r"(\bcookie['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^}'\"]+)",
    # Keys of model hubs and of OpenAI, by their form.
    r"()\b(?:hf_|sk-)[A-Za-z0-9_-]{16,}",
    r"(\bauthorization['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^,}'\"]+)",
    r"(\bbearer\s+)[^\s'\",]+",
    r"(://)[^/\s@'\"]+(?=@)",
)
_PATTERNS: Final = tuple(re.compile(pattern, re.IGNORECASE) for pattern in _SECRETS)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class EngineLog:
    """The last lines of the log, over restarts, without contents of requests and without keys."""

    def __init__(self, public: Callable[[str], str | None]) -> None:
        """Begin without lines.

        Args:
            public: see `StartableEngine.public_lines`.
        """
        self._public = public
        self._lines: deque[str] = deque(maxlen=_LINES)

    @property
    def lines(self) -> Sequence[str]:
        """The lines, the oldest first: at most 10, each of at most 400 bytes."""
        return tuple(map(self.clean, self._lines))

    def add(self, line: str) -> None:
        """Append a line of `EngineProcess.read_log`, unless it must not be shown."""
        shown = self._public(line)
        if shown is not None:
            self._lines.append(shown)

    def clean(self, text: str) -> str:
        """Return a text with a mask for each key, as one line of limited length."""
        text = text[:_LONGEST_TEXT]
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\1{_MASK}", text)
        shown = _CONTROL.sub(" ", text).encode("utf-8", "replace")
        if len(shown) <= _LINE_BYTES:
            return shown.decode()
        return shown[: _LINE_BYTES - 3].decode("utf-8", "ignore") + "…"
