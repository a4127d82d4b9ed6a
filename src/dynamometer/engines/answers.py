"""Read answers that are not streams: token counts and errors.

An answer may be long (embeddings: tens of MB): msgspec creates objects only for its usage and its
finish reasons.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from dynamometer.engines.dialects import (
    CANCELLED,
    Event,
    Tokens,
    error_status,
    finish_status,
    generated_tokens,
    messages_tokens,
    openai_tokens,
)
from dynamometer.engines.interface import Usage


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
    """The token counts and the error of an answer that is not a stream.

    Attributes:
        tokens: the token counts.
        error_code: the HTTP status of an error in the answer; None if the answer is successful.
    """

    tokens: Tokens = field(default_factory=Tokens)
    error_code: int | None = None


def read_answer(body: bytes, usage: Usage, *, samples: int = 1) -> Answer:
    """Read an answer that is not a stream, with a status below 400.

    Args:
        body: the body of the answer.
        usage: the dialect of the route's answers.
        samples: the number of answers to each prompt; above 1 only on SGLang's own route.
    """
    if usage is Usage.NONE:
        return Answer()
    try:
        if usage is Usage.GENERATE:
            metas = _metas(body)
            codes = [finish_status(meta.get("finish_reason")) for meta in metas.values()]
            return Answer(generated_tokens(metas, samples), _worst(codes))
        answer = msgspec.json.decode(body, type=_Answer)
        code = _worst([_error_status(answer), *_finish_statuses(answer.choices)])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Answer()  # not JSON, or not an object
    reported = answer.usage
    if not isinstance(reported, dict):
        return Answer(error_code=code)
    read_tokens = messages_tokens if usage is Usage.MESSAGES else openai_tokens
    return Answer(read_tokens(reported), code)


def _error_status(answer: _Answer) -> int | None:
    """Return the HTTP status of an error sent instead of an answer, or None."""
    if answer.status == "cancelled":
        return CANCELLED
    failed = answer.status == "failed" or answer.type == "error" or answer.kind == "error"
    if failed or answer.error:
        return error_status(msgspec.structs.asdict(answer))
    return None


def _finish_statuses(choices: msgspec.Raw) -> list[int | None]:
    try:
        read = msgspec.json.decode(choices, type=list[_Choice] | None)
    except msgspec.ValidationError:
        return []  # not OpenAI's choices
    return [finish_status(choice.finish_reason) for choice in read or ()]


def _worst(codes: Iterable[int | None]) -> int | None:
    return max((code for code in codes if code is not None), default=None)


def _metas(body: bytes) -> dict[int, Event]:
    """Return `meta_info` of each answer of SGLang's own route, by the answer's index."""
    try:
        parts = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        parts = [msgspec.Raw(body)]  # a single answer
    metas: dict[int, Event] = {}
    for index, part in enumerate(parts):
        try:
            metas[index] = msgspec.structs.asdict(
                msgspec.json.decode(part, type=_Generated).meta_info
            )
        except msgspec.ValidationError:
            continue  # an answer without meta_info
    return metas
