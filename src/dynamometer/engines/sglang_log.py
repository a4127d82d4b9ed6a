"""SGLang's log without the contents of requests.

SGLang logs requests with `--log-requests`, and parts of them in some errors. The filter knows such
entries by words that only they have. An entry may have several lines: it ends where the next entry
begins, with a time stamp or with uvicorn's level. The further lines of an exception's message are
omitted, because the message may quote anything, and so are those of an entry whose first line is
too long to be searched.
"""

from __future__ import annotations

import re
from typing import Final

# The event loop searches the lines: 400 lines of this length take up to 0.1 s.
_LONGEST_LINE: Final = 2000
_BEGINNING: Final = re.compile(
    r"\[\d{4}-\d\d-\d\d|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):\s"
    # Lines that Python, the C++ library and torch write after an exception.
    r"|During handling of the above exception|The above exception was the direct cause"
    r"|Fatal Python error:|terminate called|\[rank\d+\]:|\[[WEF]\d{4} "
)
_MEMBERS: Final = (
    r"(?:text|prompt|messages|content|inputs?|input_text|input_ids|origin_input_ids|output_ids"
    r"|input_embeds|token_ids|arguments|image_data|audio_data|video_data|image_url|sampling_params)"
)
# Requests as SGLang's objects (`GenerateReqInput(...)`, `Req(rid=...)`), as members of these or of
# the JSON of a request, and as values that are not valid.
_PRIVATE: Final = re.compile(
    r"\b(?:Receive|Receive OpenAI|Finish): obj=|\"event\": *\"request\."
    r"|Req(?:Input|Output)?\(|\brecv_obj=|\binput_value=|Unparsed required tool call"
    rf"|\b{_MEMBERS} *= *\S|(['\"]){_MEMBERS}\1 *: *\S"
)
_TRACEBACK: Final = "Traceback (most recent call last):"
# The margin of the lines of an exception group, and the lines between its exceptions.
_MARGIN: Final = re.compile(r"\s+[|+] ")
_RULE: Final = re.compile(r"\s+\+-[-+]*(?: \d+ -+| \.\.\. -+)?$")
_EXCEPTION: Final = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Refused)(?=: )")
_OMITTED: Final = ": (its message is omitted: it may have the contents of a request)"
# A line of the access log. SGLang's routes need no query, but a client may send any.
_QUERY: Final = re.compile(r"(\"[A-Z-]+ [^\s?\"]*)\?[^\s\"]*")


class PublicLines:
    """A filter of SGLang's log; see `interface.StartableEngine.public_lines`."""

    def __init__(self) -> None:
        self._private = False  # the present entry has the contents of a request
        self._in_traceback = False

    def __call__(self, line: str) -> str | None:
        """Return the line without the contents of a request, truncated; None to omit the line."""
        shown = self._filter(line[:_LONGEST_LINE])
        self._private |= len(line) > _LONGEST_LINE
        return shown

    def _filter(self, line: str) -> str | None:
        if _RULE.match(line):
            return None
        margin = _MARGIN.match(line)
        text = line[margin.end() :] if margin else line
        in_traceback = self._in_traceback
        if in_traceback and text[:1].isspace():
            return line  # source code
        self._in_traceback = _TRACEBACK in text
        if self._in_traceback or _BEGINNING.match(text):
            self._private = in_traceback = False
        if not self._private and not _PRIVATE.search(text):
            # After the source code comes the message, whose further lines are omitted.
            self._private = in_traceback
            return _QUERY.sub(r"\1", line)
        self._private = True
        exception = _EXCEPTION.match(text)
        return exception[0] + _OMITTED if exception else None
