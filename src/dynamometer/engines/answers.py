"""Read answers: how many tokens they took, when their content was there, and whether they failed.

A stream is read event by event as it passes; the bytes that go on are the engine's, without the
usage chunk that the frontend asked for and the client did not. An answer in one piece may be long
(embeddings: tens of MB): msgspec makes objects of its usage and its finish reasons alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import orjson

from dynamometer.engines.dialects import (
    CANCELLED,
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

# An empty line: after a line's end comes another (WHATWG, "Parsing an event stream").
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_LONGEST_END: Final = len(b"\r\n\r\n")
_DATA: Final = b"data:"
# Data of such an event may be text, or missing: NVIDIA Dynamo puts the message into a comment.
_ERROR_EVENT: Final = re.compile(rb"(?:\A|[\r\n])event: ?error(?:[\r\n]|\Z)")
_DONE: Final = b"[DONE]"
# What the last event of a response is.
_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# What is longer goes on unread: neither usage nor a token is that long.
_LONGEST_EVENT: Final = 2**22
# Parts of a chat's delta that no token makes.
_NO_CONTENT: Final = frozenset({"role", "hidden_states"})


class _Answer(msgspec.Struct, rename={"kind": "object"}):
    usage: object = None
    choices: msgspec.Raw = msgspec.Raw(b"null")
    error: object = None
    kind: object = None
    type: object = None
    status: object = None
    code: object = None


class _Choice(msgspec.Struct):
    finish_reason: object = None


class _Meta(msgspec.Struct):
    prompt_tokens: object = None
    completion_tokens: object = None
    cached_tokens: object = None
    finish_reason: object = None


class _Generated(msgspec.Struct):
    meta_info: _Meta


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer in one piece says of itself.

    Attributes:
        tokens: that it took.
        error_code: the HTTP status that it stands for, where it failed in spite of its own.
    """

    tokens: Tokens = field(default_factory=Tokens)
    error_code: int | None = None


class StreamReader:
    """Read one stream of server-sent events.

    Attributes:
        content_times: when each event with content was there, in the caller's seconds.
        error_code: the HTTP status that an error in the stream, or a finish reason, stands for.
        ended: whether the stream's last event was read, or an error: many clients close at that.
    """

    def __init__(self, usage: Usage, *, hide_usage: bool, samples: int = 1) -> None:
        """Begin before the first byte.

        Args:
            usage: where the route's answers say their tokens.
            hide_usage: take out the chunk that holds nothing but usage.
            samples: how many answers each prompt has, by SGLang's own route.
        """
        self._samples = samples
        self._read: Callable[[Event], bool] = {
            Usage.NONE: self._read_nothing,
            Usage.OPENAI: self._read_openai,
            Usage.RESPONSES: self._read_responses,
            Usage.MESSAGES: self._read_messages,
            Usage.GENERATE: self._read_generate,
        }[usage]
        self._hide_usage = hide_usage
        self._held = bytearray()
        self._unread = False
        self._generated: dict[int, Event] = {}
        self._parts: dict[str, int | None] = {}
        self._tokens = Tokens()
        self._usage = usage
        self._any_event = self._any_unread = self._any_error = False
        self._choices: set[object] = set()
        self._finished: set[object] = set()
        self._last_choice: object = None  # most streams have one: noted once
        self.content_times: list[float] = []
        self.error_code: int | None = None
        self.ended = False

    @property
    def tokens(self) -> Tokens:
        """What the stream has said of its tokens so far."""
        if self._generated:
            return generated_tokens(self._generated, self._samples)
        return self._tokens

    @property
    def whole(self) -> bool:
        """Whether the stream's last event was read, and no error in the place of the rest."""
        return self.ended and not self._any_error

    @property
    def complete(self) -> bool:
        """Whether the client has had the whole of its answer, or an error, if no more is sent.

        A stream without its terminator is complete where all its choices have a finish reason. An
        event that was too long to be read may have been the last one.
        """
        if self._any_unread:
            return True
        if self.ended or self._usage is Usage.NONE:
            return self._any_event
        return bool(self._finished) and self._choices <= self._finished

    def feed(self, chunk: bytes, now: float) -> bytes:
        """What goes on to the client of `chunk`, and of what was held back before it.

        Args:
            chunk: the next bytes of the stream.
            now: when they were there, seconds.
        """
        held = self._held
        if not held and not self._unread and _is_one_event(chunk):
            return chunk if self._passes(chunk[:-2], now) else b""
        # An end may stand across two chunks.
        begin, search = 0, max(0, len(held) - _LONGEST_END + 1)
        held += chunk
        passed = []
        while True:
            match = _EVENT_END.search(held, search)
            if match is None:
                break
            end, search = match.start(), match.end()
            del match  # it holds the buffer
            event = bytes(held[begin:end])
            if self._unread or self._passes(event, now):
                passed.append(bytes(held[begin:search]))
            else:  # where the event before ended in \r\n, its \n may have come after it
                passed.append(event[: -len(event.lstrip(b"\r\n"))])
            self._unread = False
            begin = search
        del held[:begin]
        if self._unread or len(held) > _LONGEST_EVENT:
            self._unread = self._any_unread = True
            passed.append(bytes(held[: 1 - _LONGEST_END]))
            del held[: 1 - _LONGEST_END]
        return b"".join(passed)

    def finish(self, now: float) -> bytes:
        """What goes on of what was held back at the stream's end: an event without its empty line.

        Args:
            now: when the stream ended, seconds.
        """
        rest = bytes(self._held)
        self._held.clear()
        return rest if self._unread or self._passes(rest, now) else b""

    def _passes(self, event: bytes, now: float) -> bool:
        """Read one event; whether it goes on."""
        # Nearly always the one line of data is the event's last.
        line = 0 if event.startswith(_DATA) else event.find(b"\n" + _DATA) + 1 or len(event)
        try:
            content = orjson.loads(event[line + len(_DATA) :])
        except ValueError:
            content = _of_all_lines(event)
        if b"error" in event and _ERROR_EVENT.search(event):
            self._any_event = True
            self._failed(error_status(content if isinstance(content, dict) else {}))
        if not isinstance(content, dict):
            self.ended = self.ended or content == _DONE
            self._any_event = self._any_event or content not in (_DONE, b"")
            return True  # that, a comment, or none of ours
        self._any_event = True
        if content.get("error") or content.get("object") == "error":
            self._failed(error_status(content))
        if self._read(content):
            self.content_times.append(now)
            return True
        return not (self._hide_usage and content.get("choices") == [] and content.get("usage"))

    # One of these reads an event, and says whether it has content.

    def _read_nothing(self, _: Event) -> bool:
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
                    self._note_choice(_integer_or_0(index), reason)
                found = found or _has_content(choice)
        return found

    def _read_responses(self, event: Event) -> bool:
        response = event.get("response")
        if isinstance(response, dict) and isinstance(response.get("usage"), dict):
            self._tokens = openai_tokens(response["usage"])
        kind = str(event.get("type"))
        if kind == "response.cancelled":
            self._failed(CANCELLED)
        if kind in ("response.failed", "error"):
            self._failed(error_status(response if isinstance(response, dict) else event))
        if kind in _RESPONSE_ENDS:
            self.ended = True
        return kind.endswith(".delta") and bool(event.get("delta"))

    def _read_messages(self, event: Event) -> bool:
        message = event.get("message")
        usage = message.get("usage") if isinstance(message, dict) else event.get("usage")
        if isinstance(usage, dict):
            # What an event leaves out stays as it was told before.
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
        self._generated[index] = meta
        reason = meta.get("finish_reason")
        self._note_choice(index, reason)
        code = finish_status(reason)
        if code is not None and code != CANCELLED:
            self._failed(code)
        return code is None

    def _note_choice(self, index: int, finish_reason: object) -> None:
        self._choices.add(index)
        if finish_reason is not None:
            self._finished.add(index)
            code = finish_status(finish_reason)
            if code is not None:
                self.error_code = max(code, self.error_code or 0)

    def _failed(self, code: int) -> None:
        self.error_code = code
        self.ended = self._any_error = True


def _is_one_event(chunk: bytes) -> bool:
    """Whether it is no more and no less than that, as nearly every chunk is."""
    return chunk.find(b"\n\n") == len(chunk) - 2 and len(chunk) > 2 and b"\r" not in chunk


def _of_all_lines(event: bytes) -> object:
    """The content of an event however its lines are; its data where that is no JSON."""
    lines = event.removeprefix(_BYTE_ORDER_MARK).splitlines()
    data = b"\n".join(line[len(_DATA) :] for line in lines if line.startswith(_DATA))
    try:
        return orjson.loads(data)
    except ValueError:
        return data.strip()


def read_answer(body: bytes, usage: Usage, *, samples: int = 1) -> Answer:
    """Read an answer that came in one piece, with a status below 400.

    Args:
        body: of the answer.
        usage: where the route's answers say their tokens.
        samples: how many answers each prompt has, by SGLang's own route.
    """
    if usage is Usage.NONE:
        return Answer()
    try:
        if usage is Usage.GENERATE:
            metas = _metas(body)
            codes = [finish_status(meta.get("finish_reason")) for meta in metas.values()]
            return Answer(generated_tokens(metas, samples), _worst(codes))
        answer = msgspec.json.decode(body, type=_Answer)
        code = _worst([_error_of(answer), *_finish_errors(answer.choices)])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Answer()  # not JSON, or not an object
    counted = answer.usage
    if not isinstance(counted, dict):
        return Answer(error_code=code)
    read_tokens = messages_tokens if usage is Usage.MESSAGES else openai_tokens
    return Answer(read_tokens(counted), code)


def _error_of(answer: _Answer) -> int | None:
    """Return the status that an error in the place of an answer stands for."""
    if answer.status == "cancelled":
        return CANCELLED
    failed = answer.status == "failed" or answer.type == "error" or answer.kind == "error"
    if failed or answer.error:
        return error_status(msgspec.structs.asdict(answer))
    return None


def _finish_errors(choices: msgspec.Raw) -> list[int | None]:
    try:
        read = msgspec.json.decode(choices, type=list[_Choice] | None)
    except msgspec.ValidationError:
        return []  # not choices as OpenAI has them
    return [finish_status(choice.finish_reason) for choice in read or ()]


def _worst(codes: Iterable[int | None]) -> int | None:
    return max((code for code in codes if code is not None), default=None)


def _metas(body: bytes) -> dict[int, Event]:
    """What the answers of SGLang's own route say of themselves, by their numbers."""
    try:
        parts = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        parts = [msgspec.Raw(body)]  # one alone
    metas: dict[int, Event] = {}
    for number, part in enumerate(parts):
        try:
            metas[number] = msgspec.structs.asdict(
                msgspec.json.decode(part, type=_Generated).meta_info
            )
        except msgspec.ValidationError:
            continue  # an answer that says nothing of itself
    return metas


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
