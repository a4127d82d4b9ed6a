"""Read streamed answers: token counts, the times of content, the end, and errors.

The reader gets each chunk before the client. The client receives the engine's bytes, except for a
usage chunk that the frontend requested and the client did not.

Most events of a stream differ only in their text. The reader parses the first of them, keeps the
bytes around its text, and recognises later events by these bytes, without parsing. The memory of a
reader does not grow with its stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import orjson

from dynamometer.engines.dialects import (
    CANCELLED,
    GENERATED_COUNTS,
    MESSAGES_PARTS,
    Event,
    Tokens,
    error_status,
    finish_status,
    generated_tokens,
    integer,
    messages_tokens,
    openai_tokens,
)
from dynamometer.engines.interface import Usage

# An empty line: a line ending that follows another (WHATWG, "Parsing an event stream").
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_LONGEST_END: Final = len(b"\r\n\r\n")
_DATA: Final = b"data:"
# The data of an error may be text or missing: NVIDIA Dynamo puts the message into a comment.
_ERROR_EVENT: Final = re.compile(rb"(?:\A|[\r\n])event: ?error(?:[\r\n]|\Z)")
_DONE: Final = b"[DONE]"
_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# A longer event is passed on unparsed; an event with usage or a token is shorter.
_LONGEST_EVENT: Final = 2**22
# A JSON string without `\\uXXXX`: such an escape may be invalid, so its event is parsed. The
# members below are content if their text is not empty.
_TEXT: Final = rb'[^"\\\x00-\x1f]*(?:\\["\\/bfnrt][^"\\\x00-\x1f]*)*'
_WHOLE_TEXT: Final = re.compile(_TEXT)
_TEXT_MEMBER: Final = re.compile(
    rb'"(?:content|reasoning_content|text|delta|thinking|partial_json)": ?"(?=[^"])('
    + _TEXT
    + rb')"'
)
# Members that have another effect than content.
_OTHER_MEMBERS: Final = ("usage", "error", "message", "response")
_READ_BY_BYTES: Final = frozenset({Usage.OPENAI, Usage.RESPONSES, Usage.MESSAGES})
# After so many patterns that matched no event, the reader learns no further ones.
_MOST_USELESS: Final = 8
# Members of a chat's delta that are not generated content.
_NO_CONTENT: Final = frozenset({"role", "hidden_states"})


class StreamReader:
    """Read one stream of server-sent events."""

    def __init__(
        self,
        usage: Usage,
        *,
        hide_usage: bool,
        samples: int = 1,
        on_content: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Prepare to read a stream.

        Args:
            usage: the form in which the route's answers report usage.
            hide_usage: remove the chunk that contains only usage.
            samples: the number of answers to each prompt, on SGLang's own route.
            on_content: called for each event with content, with the arrival time that `feed` was
                called with.
        """
        self._usage = usage
        self._hide_usage = hide_usage
        self._on_content = on_content
        self._events = _EventReader(usage, samples)
        self._pattern = _Pattern() if usage in _READ_BY_BYTES else None
        # The beginning of an incomplete event.
        self._held = bytearray()
        # True while the current event is too long and is passed on unparsed.
        self._skipping = False
        self._any_event = self._any_skipped = False

    @property
    def tokens(self) -> Tokens:
        """The token counts that the stream has reported so far."""
        return self._events.tokens

    @property
    def error_code(self) -> int | None:
        """The HTTP status of an error or a finish reason in the stream; None without an error."""
        return self._events.error_code

    @property
    def ended(self) -> bool:
        """True after the last event, or after an error: many clients close the connection then."""
        return self._events.ended

    @property
    def successful(self) -> bool:
        """True after the last event, if no error replaced the rest of the stream."""
        return self._events.ended and not self._events.failed

    @property
    def complete(self) -> bool:
        """True if the client already has the whole answer, or an error.

        A stream without its last event is complete if all its choices have a finish reason. An
        event that was too long to be read counts as the last event.
        """
        if self._any_skipped:
            return True
        if self.ended or self._usage is Usage.NONE:
            return self._any_event
        return self._events.all_choices_finished

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Return the bytes for the client: of `chunk`, and of earlier chunks that were held back.

        Args:
            chunk: the next bytes of the stream.
            now: the arrival time of the chunk, seconds.
        """
        held = self._held
        if not held and not self._skipping and chunk.endswith(b"\n\n"):
            if self._pattern is not None and self._pattern.matches(chunk[:-2]):
                self._on_content(now)
                return chunk
            if b"\r" not in chunk and not chunk.endswith(b"\n\n\n"):
                return self._feed_events(chunk, now)
        # The end of an event may span two chunks.
        begin, search = 0, max(0, len(held) - _LONGEST_END + 1)
        held += chunk
        passed = []
        while True:
            match = _EVENT_END.search(held, search)
            if match is None:
                break
            end, search = match.start(), match.end()
            del match  # a match locks the buffer
            event = bytes(held[begin:end])
            if self._skipping or self._read(event, now):
                passed.append(bytes(held[begin:search]))
            else:  # the \n of the previous event's \r\n may precede this event
                passed.append(event[: -len(event.lstrip(b"\r\n"))])
            self._skipping = False
            begin = search
        del held[:begin]
        if self._skipping or len(held) > _LONGEST_EVENT:
            self._skipping = self._any_skipped = True
            passed.append(bytes(held[: 1 - _LONGEST_END]))
            del held[: 1 - _LONGEST_END]
        return b"".join(passed)

    def _feed_events(self, chunk: bytes, now: float) -> bytes:
        """Return the bytes for the client of whole events whose lines end with a line feed."""
        events = chunk.split(b"\n\n")
        events.pop()  # the empty rest after the last empty line
        passes = [self._read(event, now) for event in events]
        if all(passes):
            return chunk
        return b"".join(
            event + b"\n\n" if passed else event[: -len(event.lstrip(b"\n"))]
            for event, passed in zip(events, passes, strict=True)
        )

    def finish(self, now: float) -> bytes:
        """Return the bytes that are still held back: an event without its final empty line.

        Args:
            now: the time of the stream's end, seconds.
        """
        rest = bytes(self._held)
        self._held.clear()
        return rest if self._skipping or self._read(rest, now) else b""

    def _read(self, event: bytes, now: float) -> bool:
        """Read one event, and return whether the client receives the event."""
        if self._pattern is not None and self._pattern.matches(event):
            self._on_content(now)
            return True
        # Nearly every event has one data line, which is the last line.
        line = 0 if event.startswith(_DATA) else event.find(b"\n" + _DATA) + 1 or len(event)
        try:
            content = orjson.loads(event[line + len(_DATA) :])
        except ValueError:
            content = _parse_lines(event)
            line = -1
        if b"error" in event and _ERROR_EVENT.search(event):
            self._any_event = True
            line = -1
            self._events.fail(error_status(content if isinstance(content, dict) else {}))
        if not isinstance(content, dict):  # the end, a comment, or another format
            self._events.ended = self._events.ended or content == _DONE
            self._any_event = self._any_event or content not in (_DONE, b"")
            return True
        self._any_event = True
        if content.get("error") or content.get("object") == "error":
            line = -1
            self._events.fail(error_status(content))
        if self._events.read(content):
            self._on_content(now)
            if self._pattern is not None and line >= 0 and _has_only_content(content):
                self._pattern.learn(event)
            return True
        return not (self._hide_usage and content.get("choices") == [] and content.get("usage"))


class _Pattern:
    """The bytes before and after the text of an event that has only content.

    An event with the same bytes around another text also has only content, if the text is not
    empty (`_has_only_content`).
    """

    __slots__ = ("_after", "_before", "_learning", "_used", "_useless")

    def __init__(self) -> None:
        self._before = self._after = b""
        self._learning = True
        self._used = False
        self._useless = 0

    def matches(self, event: bytes) -> bool:
        """Return whether `event` differs from the learned one only in its text."""
        before, after = self._before, self._after
        if not before or not event.startswith(before) or not event.endswith(after):
            return False
        text = event[len(before) : len(event) - len(after)]
        if not text or _WHOLE_TEXT.fullmatch(text) is None:
            return False
        if not text.isascii():
            try:
                text.decode()
            except UnicodeDecodeError:
                return False
        self._used = True
        return True

    def learn(self, event: bytes) -> None:
        """Recognise events like `event` from now on."""
        if not self._learning:
            return
        if self._before and not self._used:
            self._useless += 1
            self._learning = self._useless < _MOST_USELESS
        self._used = False
        match = _TEXT_MEMBER.search(event)
        if match is None or b"\r" in event:
            self._before = b""
        else:
            self._before, self._after = event[: match.start(1)], event[match.end(1) :]


def _has_only_content(event: Event) -> bool:
    """Return whether an event with content has no other effect."""
    if any(event.get(member) is not None for member in _OTHER_MEMBERS):
        return False
    choices = event.get("choices")
    return not isinstance(choices, list) or not any(
        isinstance(choice, dict) and choice.get("finish_reason") is not None for choice in choices
    )


class _EventReader:
    """Read the parsed events of a stream in one dialect.

    Attributes:
        read: reads an event, and returns whether it has content.
        error_code: see `StreamReader.error_code`.
        ended: see `StreamReader.ended`.
        failed: True after an error in place of the rest of the stream.
    """

    def __init__(self, usage: Usage, samples: int) -> None:
        self.read: Callable[[Event], bool] = {
            Usage.NONE: self._read_any,
            Usage.OPENAI: self._read_openai,
            Usage.RESPONSES: self._read_responses,
            Usage.MESSAGES: self._read_messages,
            Usage.GENERATE: self._read_generate,
        }[usage]
        self.error_code: int | None = None
        self.ended = self.failed = False
        self._samples = samples
        self._generated: dict[int, Event] = {}
        self._parts: dict[str, int | None] = {}
        self._tokens = Tokens()
        self._choices: set[object] = set()
        self._finished: set[object] = set()
        self._last_choice: object = None  # most streams have one choice, which is added once

    @property
    def tokens(self) -> Tokens:
        """See `StreamReader.tokens`."""
        if self._generated:
            return generated_tokens(self._generated, self._samples)
        return self._tokens

    @property
    def all_choices_finished(self) -> bool:
        """True if the stream has choices, and each has a finish reason."""
        return bool(self._finished) and self._choices <= self._finished

    def fail(self, code: int) -> None:
        """Record an error in place of the rest of the stream."""
        self.error_code = code
        self.ended = self.failed = True

    def _read_any(self, _: Event) -> bool:
        return False

    def _read_openai(self, event: Event) -> bool:
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._tokens = openai_tokens(usage)
        choices = event.get("choices")
        if not isinstance(choices, list):
            return False
        found = False
        for choice in choices:
            if isinstance(choice, dict):
                index, reason = choice.get("index"), choice.get("finish_reason")
                if reason is not None or index != self._last_choice:
                    self._last_choice = index
                    self._add_choice(_integer_or_0(index), reason)
                found = found or _has_content(choice)
        return found

    def _read_responses(self, event: Event) -> bool:
        response = event.get("response")
        if isinstance(response, dict) and isinstance(response.get("usage"), dict):
            self._tokens = openai_tokens(response["usage"])
        kind = str(event.get("type"))
        if kind == "response.cancelled":
            self.fail(CANCELLED)
        if kind in ("response.failed", "error"):
            self.fail(error_status(response if isinstance(response, dict) else event))
        if kind in _RESPONSE_ENDS:
            self.ended = True
        return kind.endswith(".delta") and bool(event.get("delta"))

    def _read_messages(self, event: Event) -> bool:
        message = event.get("message")
        usage = message.get("usage") if isinstance(message, dict) else event.get("usage")
        if isinstance(usage, dict):
            # A count that an event omits keeps its earlier value.
            for part in MESSAGES_PARTS:
                self._parts[part] = integer(usage.get(part), self._parts.get(part))
            self._tokens = messages_tokens(self._parts)
        kind, delta = event.get("type"), event.get("delta")
        if kind == "message_stop":
            self.ended = True
        if kind != "content_block_delta" or not isinstance(delta, dict):
            return False
        return any(value for key, value in delta.items() if key != "type")

    def _read_generate(self, event: Event) -> bool:
        meta = event.get("meta_info")
        if not isinstance(meta, dict):
            return False
        index = _integer_or_0(event.get("index"))
        self._generated[index] = {count: meta.get(count) for count in GENERATED_COUNTS}
        reason = meta.get("finish_reason")
        self._add_choice(index, reason)
        code = finish_status(reason)
        if code is not None and code != CANCELLED:
            self.fail(code)
        return code is None

    def _add_choice(self, index: int, finish_reason: object) -> None:
        self._choices.add(index)
        if finish_reason is not None:
            self._finished.add(index)
            code = finish_status(finish_reason)
            if code is not None:
                self.error_code = max(code, self.error_code or 0)


def _parse_lines(event: bytes) -> object:
    """Return the JSON value in the data lines of an event; the raw data if they are not JSON."""
    lines = event.removeprefix(_BYTE_ORDER_MARK).splitlines()
    data = b"\n".join(line[len(_DATA) :] for line in lines if line.startswith(_DATA))
    try:
        return orjson.loads(data)
    except ValueError:
        return data.strip()


def _has_content(choice: Event) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False
    for key, value in delta.items():  # noqa: SIM110  # a third of the time of any()
        if value and key not in _NO_CONTENT:
            return True
    return False


def _integer_or_0(value: object) -> int:
    return integer(value, 0) or 0
