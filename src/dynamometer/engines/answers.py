"""What an answer says of itself: tokens, when its content came, whether it failed.

A stream is read event by event as it passes; the bytes that go on are the engine's, less the
usage chunk that the frontend asked for and the client did not. An answer in one piece may be long
(embeddings: tens of MB), and is read on the event loop: msgspec makes objects of its usage alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import orjson

from dynamometer.engines.interface import Usage

# An empty line: after a line's end comes another (WHATWG, "Parsing an event stream").
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_LONGEST_END: Final = len(b"\r\n\r\n")
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
# What the last event of a response is.
_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# What is longer goes on unread: neither usage nor a token is that long.
_LONGEST_EVENT: Final = 2**22
# What an error in a stream calls itself where its code is no number: Anthropic's, and OpenAI's.
_CODES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 529,
    "context_length_exceeded": 400,
    "invalid_prompt": 400,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
}
# Parts of a chat's delta that no token makes.
_NO_CONTENT: Final = frozenset({"role", "hidden_states"})
# Where Anthropic's usage tells of the prompt, by where it came from, and of the answer.
_MESSAGES_PARTS: Final = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)
Event = Mapping[str, object]


class _Answer(msgspec.Struct):
    usage: object = None


class _Meta(msgspec.Struct):
    prompt_tokens: object = None
    completion_tokens: object = None
    cached_tokens: object = None


class _Generated(msgspec.Struct):
    meta_info: _Meta


@dataclass(slots=True)
class Tokens:
    """Tokens of a whole request; None where the answer did not say."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


class StreamReader:
    """Follows one stream of server-sent events."""

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
        # Seconds (the caller's clock) at which each event with content was there.
        self.content_times: list[float] = []
        self.error_code: int | None = None
        # Whether the stream's last event was read, or an error: many clients close at that.
        self.ended = False

    @property
    def tokens(self) -> Tokens:
        """What the stream has said of its tokens so far."""
        if self._generated:
            return _generated_tokens(self._generated, self._samples)
        return self._tokens

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
            self._unread = True
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
        if not isinstance(content, dict):
            self.ended = self.ended or content == _DONE
            return True  # that, a comment, or none of ours
        if content.get("error") or content.get("object") == "error":
            self._failed(_code(content))
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
            self._tokens = _openai_tokens(usage)
        choices = event.get("choices")
        if not isinstance(choices, list):
            return False
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            if choice.get("text"):
                return True
            delta = choice.get("delta")
            if isinstance(delta, dict):
                for key, value in delta.items():
                    if value and key not in _NO_CONTENT:
                        return True
        return False

    def _read_responses(self, event: Event) -> bool:
        response = event.get("response")
        if isinstance(response, dict) and isinstance(response.get("usage"), dict):
            self._tokens = _openai_tokens(response["usage"])
        kind = str(event.get("type"))
        if kind in ("response.failed", "error"):
            self._failed(_code(response if isinstance(response, dict) else event))
        if kind in _RESPONSE_ENDS:
            self.ended = True
        return kind.endswith(".delta") and bool(event.get("delta"))

    def _read_messages(self, event: Event) -> bool:
        message = event.get("message")
        usage = message.get("usage") if isinstance(message, dict) else event.get("usage")
        if isinstance(usage, dict):
            # What an event leaves out stays as it was told before.
            for part in _MESSAGES_PARTS:
                self._parts[part] = _integer(usage.get(part), self._parts.get(part))
            self._tokens = _messages_tokens(self._parts)
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
        self._generated[_integer(event.get("index"), 0) or 0] = meta
        refused = _refused(meta.get("finish_reason"))
        if refused is not None:
            self._failed(refused)
        return refused is None

    def _failed(self, code: int) -> None:
        self.error_code = code
        self.ended = True


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


def of_answer(body: bytes, usage: Usage, *, samples: int = 1) -> Tokens:
    """The tokens of an answer that came in one piece; empty where it says nothing.

    Args:
        body: of the answer.
        usage: where the route's answers say their tokens.
        samples: how many answers each prompt has, by SGLang's own route.
    """
    if usage is Usage.NONE:
        return Tokens()
    try:
        if usage is Usage.GENERATE:
            return _generated_tokens(_metas(body), samples)
        said = msgspec.json.decode(body, type=_Answer).usage
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Tokens()  # no JSON, or no object
    if not isinstance(said, dict):
        return Tokens()
    return _messages_tokens(said) if usage is Usage.MESSAGES else _openai_tokens(said)


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


def _messages_tokens(usage: Event) -> Tokens:
    """Anthropic's: the prompt is told in up to three parts, by where it came from."""
    fresh, made, cached, output = (_integer(usage.get(part), None) for part in _MESSAGES_PARTS)
    return Tokens(
        input=None if fresh is None else fresh + (made or 0) + (cached or 0),
        output=output,
        cached=cached,
    )


def _openai_tokens(usage: Event) -> Tokens:
    """OpenAI's two spellings: of chats and completions, and of responses and messages."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Tokens(
        input=_integer(usage.get("prompt_tokens"), _integer(usage.get("input_tokens"), None)),
        output=_integer(usage.get("completion_tokens"), _integer(usage.get("output_tokens"), None)),
        cached=_integer(cached, None),
    )


def _generated_tokens(metas: Mapping[int, Event], samples: int) -> Tokens:
    """SGLang's: each answer tells of its whole prompt, which counts once for all its answers.

    Args:
        metas: what each answer says of itself, by its number; a prompt's answers follow each other.
        samples: how many answers each prompt has.
    """

    def total(key: str, *, together: int) -> int | None:
        """Of as many answers as are counted `together`, the first that says it."""
        values: dict[int, int] = {}
        for number, meta in metas.items():
            value = _integer(meta.get(key), None)
            if value is not None:
                values.setdefault(number // together, value)
        return sum(values.values()) if values else None

    return Tokens(
        input=total("prompt_tokens", together=samples),
        output=total("completion_tokens", together=1),
        cached=total("cached_tokens", together=samples),
    )


def _integer(value: object, default: int | None) -> int | None:
    counted = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if counted else default  # type: ignore[return-value]  # an int, as was asked


def _code(content: Event) -> int:
    error = content.get("error")
    said = error if isinstance(error, dict) else content
    code = said.get("code")
    if isinstance(code, int):
        return code
    return _CODES.get(str(code)) or _CODES.get(str(said.get("type")), 500)


def _refused(finish_reason: object) -> int | None:
    """The status with which the engine refused a request of its own route, or gave it up."""
    if isinstance(finish_reason, dict) and finish_reason.get("type") == "abort":
        return _integer(finish_reason.get("status_code"), None)
    return None
