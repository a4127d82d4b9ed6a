"""A request's body: what the frontend reads of it, and the one thing that it adds.

What a request means is the engine's business. The frontend reads `model`, `stream` and
`stream_options`, and forwards the same bytes; where a stream's tokens could not be counted
otherwise, `stream_options.include_usage` is set by a splice that leaves all other bytes alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in typeshed
from typing import Final

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_decoder: Final = json.JSONDecoder()


class BadBodyError(Exception):
    """The body cannot be understood; the message is for the client."""


@dataclass(frozen=True, kw_only=True)
class RequestBody:
    """What the frontend knows of a body; `model` is None where it names none."""

    content: bytes
    model: str | None = None
    stream: bool = False
    client_asked_for_usage: bool = False
    # Where the value of stream_options stands in the decoded text, and the value.
    _options: tuple[int, int, object] | None = None
    _text: str = ""

    def with_usage(self) -> bytes:
        """The body with `stream_options.include_usage` set to true."""
        if self._options is None:
            closing = self._text.rindex("}")
            empty = not self._text[:closing].rstrip().removesuffix("{").strip()
            comma = "" if empty else ","
            option = f'{comma}"stream_options":{{"include_usage":true}}'
            return (self._text[:closing] + option + self._text[closing:]).encode()
        start, end, value = self._options
        options = (value if isinstance(value, dict) else {}) | {"include_usage": True}
        return (self._text[:start] + json.dumps(options) + self._text[end:]).encode()


def parse(content: bytes, content_type: str) -> RequestBody:
    """Read a body: a JSON object, or a form with a file (audio transcription).

    Raises:
        BadBodyError: it is neither; says what is wrong, and where.
    """
    if content_type.lower().startswith("multipart/form-data"):
        return _parse_form(content, content_type)
    try:
        text = content.decode("utf-8")
        members = _members(text)
    except UnicodeDecodeError as error:
        raise BadBodyError(f"The request body is no UTF-8 text: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadBodyError(
            f"The request body is no JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadBodyError(f"The request body is no JSON that can be read: {error}") from None
    _, _, model = members.get("model", (0, 0, None))
    if model is not None and not isinstance(model, str):
        raise BadBodyError("model must be a string")
    options = members.get("stream_options")
    value = options[2] if options else None
    return RequestBody(
        content=content,
        model=model,
        stream=members.get("stream", (0, 0, False))[2] is True,
        client_asked_for_usage=isinstance(value, dict) and value.get("include_usage") is True,
        _options=options,
        _text=text,
    )


def _members(text: str) -> dict[str, tuple[int, int, object]]:
    """The members of the JSON object `text`: where each value stands, and the value.

    Of a name given twice the last one counts, as for the engine.
    """
    members: dict[str, tuple[int, int, object]] = {}
    position = _skip(text, 0)
    if text[position : position + 1] != "{":
        _decoder.raw_decode(text, position)  # says where it is no JSON at all
        raise BadBodyError("The request body must be a JSON object")
    position = _skip(text, position + 1)
    if text[position : position + 1] == "}":
        return _ended(text, position + 1, members)
    while True:
        if text[position : position + 1] != '"':
            raise json.JSONDecodeError("Expecting a property name in double quotes", text, position)
        name, position = scanstring(text, position + 1, True)
        position = _skip(text, position)
        if text[position : position + 1] != ":":
            raise json.JSONDecodeError("Expecting ':'", text, position)
        start = _skip(text, position + 1)
        value, position = _decoder.raw_decode(text, start)
        members[name] = (start, position, value)
        position = _skip(text, position)
        separator = text[position : position + 1]
        if separator == "}":
            return _ended(text, position + 1, members)
        if separator != ",":
            raise json.JSONDecodeError("Expecting ',' or '}'", text, position)
        position = _skip(text, position + 1)


def _ended(
    text: str, position: int, members: dict[str, tuple[int, int, object]]
) -> dict[str, tuple[int, int, object]]:
    position = _skip(text, position)
    if position != len(text):
        raise json.JSONDecodeError("Extra data", text, position)
    return members


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _parse_form(content: bytes, content_type: str) -> RequestBody:
    """`model` and `stream` of a form; its parts, files among them, go on as they are."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    form = BytesParser().parsebytes(head + content)
    if not form.is_multipart():
        raise BadBodyError("The request body is no form with the boundary that its header names")
    fields = {}
    for part in form.get_payload():
        if isinstance(part, Message):
            name = part.get_param("name", header="Content-Disposition")
            if name in ("model", "stream"):
                value = part.get_payload(decode=True)
                fields[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
    return RequestBody(
        content=content, model=fields.get("model"), stream=fields.get("stream") == "true"
    )
