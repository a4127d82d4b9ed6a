"""Error responses in OpenAI's form; the frontend and the worker send the same ones."""

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
    """Return the JSON object of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(
    status: int, message: str, kind: str, code: str | None, param: str | None = None
) -> web.Response:
    """Return an error response."""
    return web.json_response(body(message, kind, code, param), status=status)


def invalid(message: str, param: str | None = None) -> web.Response:
    """Return 400: the request is not valid."""
    return response(400, message, "invalid_request_error", None, param)


def unauthorized() -> web.Response:
    """Return 401: the engine requires a key."""
    message = "The engine's API key is missing or wrong (Authorization: Bearer KEY)"
    return response(401, message, "authentication_error", "invalid_api_key")


def unknown_model(model: str) -> web.Response:
    """Return 404: no worker serves the model."""
    shown = model if len(model) <= 200 else model[:200] + "…"
    message = f"The model {shown!r} does not exist: GET /v1/models lists the existing models"
    return response(404, message, "invalid_request_error", "model_not_found", "model")


def no_route(path: str, model: str) -> web.Response:
    """Return 404: the engine that serves the model does not have the route."""
    message = f"The engine that serves {model!r} has no route {path}"
    return response(404, message, "invalid_request_error", "not_found")


def unavailable(why: str, *, retry: bool = False) -> web.Response:
    """Return 503 with `Retry-After`.

    Args:
        why: the reason.
        retry: allow the frontend to send the request to another worker at once.
    """
    answer = response(503, f"Not available: {why}; try again", "server_error", "unavailable")
    answer.headers["Retry-After"] = RETRY_AFTER_SECONDS
    if retry:
        answer.headers[relay.RETRY_HEADER] = "1"
    return answer


def engine_died() -> web.Response:
    """Return 502: the engine ended, or broke the connection, while it worked on the request."""
    return response(502, ENGINE_DIED, "server_error", "engine_error")


ENGINE_DIED: Final = "The engine ended while it worked on this request"


def event(message: str, code: str) -> bytes:
    """Return an error as an event, for a response that is already being streamed."""
    return b"data: " + json.dumps(body(message, "server_error", code)).encode() + b"\n\n"


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send aiohttp's own errors (404, 405, 413, ...) and faults of a handler in OpenAI's form."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = response(error.status, _message(request, error), *_kind(error.status))
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        if error.status == 413:
            answer.force_close()  # the rest of the body stays unread
        return answer
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        if request.get(relay.HEAD_SENT) and request.transport is not None:
            request.transport.abort()  # a second response must not follow inside the first
        return response(
            500, "Internal error; see the log of this process", "server_error", "internal_error"
        )


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
