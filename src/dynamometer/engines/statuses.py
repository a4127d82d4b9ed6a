"""Which HTTP status an error inside an answer, or a finish reason, stands for."""

from __future__ import annotations

import re
from typing import Final

from dynamometer.engines.tokens import Event, integer

CANCELLED: Final = 499
_FAILED: Final = 500
# A code that is a status, as a number or as text (LiteLLM); other numbers are private to a server.
_ERROR_STATUS: Final = re.compile(r"[45][0-9]{2}")
# Types and codes of errors in a stream whose code is not a number: Anthropic's, and OpenAI's.
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

# SGLang's and vLLM's name, and NVIDIA Dynamo's.
_CANCELLATIONS: Final = frozenset({"abort", "cancelled"})


def error_status(content: Event) -> int:
    """Return the status that an error stands for: an object, or its member `error`."""
    error = content.get("error")
    described = error if isinstance(error, dict) else content
    code = described.get("code")
    if _ERROR_STATUS.fullmatch(str(code)):
        return int(str(code))
    known = _CODES.get(str(code)) or _CODES.get(str(described.get("type")))
    if known is not None:
        return known
    return code if isinstance(code, int) and not isinstance(code, bool) else _FAILED


def finish_status(reason: object) -> int | None:
    """Return the HTTP status that a finish reason stands for; None for a whole answer.

    An abort by the engine itself (a full queue, a timeout, a fault) has its status. An abort
    without one was requested of the engine (SGLang's /abort_request): a cancelled request, which is
    what NVIDIA Dynamo takes it for.
    """
    kind, status = reason, None
    if isinstance(reason, dict):
        kind, status = reason.get("type"), integer(reason.get("status_code"), None)
    if kind in _CANCELLATIONS:
        return status or CANCELLED
    if kind == "error":
        return status or _FAILED
    return None
