"""Errors in the form that OpenAI's clients read, for the frontend and the worker alike."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from dynamometer.http import relay

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS: Final = "2"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def body(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, object]:
    """The JSON object of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(
    status: int, message: str, kind: str, code: str | None, param: str | None = None
) -> web.Response:
    """An answer that is an error."""
    return web.json_response(body(message, kind, code, param), status=status)


def invalid(message: str, param: str | None = None) -> web.Response:
    """400: the request cannot be understood."""
    return response(400, message, "invalid_request_error", None, param)


def unauthorized() -> web.Response:
    """401: the engine wants a key."""
    message = "The engine's API key is missing or wrong (Authorization: Bearer KEY)"
    return response(401, message, "authentication_error", "invalid_api_key")


def unknown_model(model: str) -> web.Response:
    """404: no engine has registered the name."""
    shown = model if len(model) <= 200 else model[:200] + "…"
    message = f"The model {shown!r} does not exist: GET /v1/models lists those that do"
    return response(404, message, "invalid_request_error", "model_not_found", "model")


def no_route(path: str, model: str) -> web.Response:
    """404: the engine that serves the model has no such route."""
    message = f"The engine that serves {model!r} has no route {path}"
    return response(404, message, "invalid_request_error", "not_found")


def unavailable(why: str, *, retry: bool = False) -> web.Response:
    """503 with Retry-After; with `retry`, another worker may be asked at once."""
    answer = response(503, f"Not available: {why}; try again", "server_error", "unavailable")
    answer.headers["Retry-After"] = RETRY_AFTER_SECONDS
    if retry:
        answer.headers[relay.RETRY_HEADER] = "1"
    return answer


def engine_died() -> web.Response:
    """502: the engine ended, or broke off, while it held the request."""
    return response(502, ENGINE_DIED, "server_error", "engine_error")


ENGINE_DIED: Final = "The engine ended while it worked on this request"


def event(message: str, code: str) -> bytes:
    """An error as an event of a stream that has begun."""
    return b"data: " + json.dumps(body(message, "server_error", code)).encode() + b"\n\n"


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give aiohttp's own errors (404, 405, 413, ...) OpenAI's form; no traceback gets out."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = response(error.status, _message(request, error), *_kind(error.status))
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        if error.status == 413:
            answer.force_close()  # the rest of the body is not read
        return answer
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        if request.get(relay.BEGUN) and request.transport is not None:
            request.transport.abort()  # a second answer inside the first would be worse
        return response(500, "Internal error; the log says more", "server_error", "internal_error")


def _message(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"No such route: {request.method} {request.path[:200]}"
    if error.status == 405:
        return f"{request.method} is not allowed for {request.path}"
    if error.status == 413:
        return f"The request body is too large: {error.text} (--max-body-size)"
    return error.text or error.reason


def _kind(status: int) -> tuple[str, str | None]:
    if status == 404:
        return "invalid_request_error", "not_found"
    if status == 413:
        return "invalid_request_error", "request_too_large"
    return ("server_error" if status >= 500 else "invalid_request_error"), None
