"""Which HTTP status an error inside an answer, or a finish reason, stands for."""

from __future__ import annotations

from typing import Final

from dynamometer.engines.tokens import Event, integer

CANCELLED: Final = 499
_FAILED: Final = 500
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


def error_status(content: Event) -> int:
    """Return the status that an error stands for: an object, or its member `error`."""
    error = content.get("error")
    said = error if isinstance(error, dict) else content
    code = said.get("code")
    if isinstance(code, int):
        return code
    return _CODES.get(str(code)) or _CODES.get(str(said.get("type")), 500)


def finish_status(reason: object) -> int | None:
    """Return the HTTP status that a finish reason stands for; None for a whole answer.

    An abort by the engine itself (a full queue, a timeout, a fault) has its status. An abort
    without one was requested of the engine (SGLang's /abort_request): a cancelled request, which is
    what NVIDIA Dynamo takes it for.
    """
    kind, status = reason, None
    if isinstance(reason, dict):
        kind, status = reason.get("type"), integer(reason.get("status_code"), None)
    if kind == "abort":
        return status or CANCELLED
    if kind == "error":
        return status or _FAILED
    return None
