"""The token counts, errors and finish reasons of answers, in each dialect.

Dialects: OpenAI's (completions, chats, responses), Anthropic's (messages), and SGLang's own
(`/generate`). The functions here read objects that are already parsed; `answers` parses them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# A parsed JSON object: an event of a stream, or an object in an answer.
Event = Mapping[str, object]
# The token counts in `meta_info` of SGLang's own route.
GENERATED_COUNTS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens")
# The token counts in Anthropic's usage: three parts of the prompt, and the answer.
MESSAGES_PARTS: Final = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)

# The status of a request that the client or an operator cancelled (nginx: client closed request).
CANCELLED: Final = 499
_FAILED: Final = 500
# Servers put an HTTP status into `code`, as a number or as text. Other numbers have a meaning that
# only the server knows.
_ERROR_STATUS: Final = re.compile(r"[45][0-9]{2}")
# Types and codes of errors that are not numbers: Anthropic's, then OpenAI's.
_STATUS_OF_CODE: Final = {
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
# Finish reasons of a cancelled request: SGLang's and vLLM's, then NVIDIA Dynamo's.
_CANCELLATIONS: Final = frozenset({"abort", "cancelled"})


@dataclass(slots=True)
class Tokens:
    """Token counts of a whole request; None where the answer does not report them."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


def messages_tokens(usage: Event) -> Tokens:
    """Return the counts of Anthropic's usage, which reports the prompt in up to three parts."""
    uncached, created, cached, output = (integer(usage.get(part), None) for part in MESSAGES_PARTS)
    return Tokens(
        input=None if uncached is None else uncached + (created or 0) + (cached or 0),
        output=output,
        cached=cached,
    )


def openai_tokens(usage: Event) -> Tokens:
    """Return the counts of OpenAI's usage; completions and responses have different names."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Tokens(
        input=integer(usage.get("prompt_tokens"), integer(usage.get("input_tokens"), None)),
        output=integer(usage.get("completion_tokens"), integer(usage.get("output_tokens"), None)),
        cached=integer(cached, None),
    )


def generated_tokens(metas: Mapping[int, Event], samples: int) -> Tokens:
    """Return the counts of SGLang's answers; the tokens of a prompt count once for all its samples.

    Args:
        metas: `meta_info` of each answer, by the answer's index; the samples of a prompt have
            consecutive indexes.
        samples: the number of answers to each prompt.
    """

    def total(key: str, *, group_size: int) -> int | None:
        """Return the sum of the first value of each group of consecutive indexes."""
        values: dict[int, int] = {}
        for index, meta in metas.items():
            value = integer(meta.get(key), None)
            if value is not None:
                values.setdefault(index // group_size, value)
        return sum(values.values()) if values else None

    return Tokens(
        input=total("prompt_tokens", group_size=samples),
        output=total("completion_tokens", group_size=1),
        cached=total("cached_tokens", group_size=samples),
    )


def error_status(content: Event) -> int:
    """Return the HTTP status of an error: the member `error` of `content`, or `content` itself."""
    error = content.get("error")
    described = error if isinstance(error, dict) else content
    code = described.get("code")
    if _ERROR_STATUS.fullmatch(str(code)):
        return int(str(code))
    known = _STATUS_OF_CODE.get(str(code)) or _STATUS_OF_CODE.get(str(described.get("type")))
    if known is not None:
        return known
    return code if isinstance(code, int) and not isinstance(code, bool) else _FAILED


def finish_status(reason: object) -> int | None:
    """Return the HTTP status of a finish reason; None for a successful end.

    SGLang reports a status for an abort by the engine itself (a full queue, a timeout, a fault).
    An abort without a status was requested (`/abort_request`): the request counts as cancelled, as
    in NVIDIA Dynamo.
    """
    kind, status = reason, None
    if isinstance(reason, dict):
        kind, status = reason.get("type"), integer(reason.get("status_code"), None)
    if kind in _CANCELLATIONS:
        return status or CANCELLED
    if kind == "error":
        return status or _FAILED
    return None


def integer(value: object, default: int | None) -> int | None:
    """Return `value` if it is an integer of at least 0, else `default`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return default
