"""Error responses in OpenAI's form, for the frontend and the worker."""

from __future__ import annotations

import json
from typing import Final

from dynamometer.http import relay
from dynamometer.http.messages import Refusal, Response

RETRY_AFTER_SECONDS: Final = b"2"
ENGINE_DIED: Final = "The worker or its engine ended during this request"


def body(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, object]:
    """Return the JSON object of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(
    status: int, message: str, kind: str, code: str | None, param: str | None = None
) -> Response:
    """Return an error response."""
    return Response.of_json(body(message, kind, code, param), status)


def invalid(message: str, param: str | None = None) -> Response:
    """Return 400: the request is not valid."""
    return response(400, message, "invalid_request_error", None, param)


def unauthorized() -> Response:
    """Return 401: the engine requires a key."""
    message = "The engine's API key is missing or wrong (Authorization: Bearer KEY)"
    return response(401, message, "authentication_error", "invalid_api_key")


def unknown_model(model: str, *, fault: str = "") -> Response:
    """Return 404: no worker serves the model.

    Args:
        model: the model.
        fault: the reason why new workers cannot be found now.
    """
    shown = model if len(model) <= 200 else model[:200] + "…"
    if fault:
        message = f"The model {shown!r} is not known, and new workers cannot be found: {fault}"
    else:
        message = f"The model {shown!r} does not exist: GET /v1/models lists the existing models"
    return response(404, message, "invalid_request_error", "model_not_found", "model")


def no_route(path: str, model: str) -> Response:
    """Return 404: the engine that serves the model does not have the route."""
    message = f"The engine that serves {model!r} has no route {path}"
    return response(404, message, "invalid_request_error", "not_found")


def not_in_pairs(path: str, model: str) -> Response:
    """Return 404: the workers that serve the model are prefill and decode workers."""
    message = f"The prefill and decode workers that serve {model!r} do not have the route {path}"
    return response(404, message, "invalid_request_error", "not_found")


def unavailable(why: str, *, retry: bool = False) -> Response:
    """Return 503 with `Retry-After`.

    Args:
        why: the reason.
        retry: True lets the frontend send the request to another worker at once.
    """
    answer = response(503, f"Not available: {why}; try again", "server_error", "unavailable")
    answer.headers.append((b"retry-after", RETRY_AFTER_SECONDS))
    if retry:
        answer.headers.append((relay.RETRY_HEADER, b"1"))
    return answer


def engine_died(message: str = ENGINE_DIED) -> Response:
    """Return 502: the engine ended, broke the connection, or was lost during the request."""
    return response(502, message, "server_error", "engine_error")


def event(message: str, code: str) -> bytes:
    """Return an error as an event, for a response that is already being streamed."""
    return b"data: " + json.dumps(body(message, "server_error", code)).encode() + b"\n\n"


def unknown_path(method: str, path: str) -> Response:
    """Return 404: this server has no such route."""
    message = f"No such route: {method} {path[:200]}"
    return response(404, message, "invalid_request_error", "not_found")


def wrong_method(method: str, path: str, allowed: str) -> Response:
    """Return 405 with `Allow`: the route has only other methods."""
    message = f"{method} is not allowed for {path}"
    answer = response(405, message, "invalid_request_error", None)
    answer.headers.append((b"allow", allowed.encode()))
    return answer


def refused(refusal: Refusal) -> Response:
    """Return the response to a request that this server refuses to read."""
    code = {413: "request_too_large", 431: "headers_too_large", 408: "request_timeout"}
    return response(refusal.status, str(refusal), "invalid_request_error", code.get(refusal.status))


def internal() -> Response:
    """Return 500: a fault of this process."""
    message = "Internal error; see the log of this process"
    return response(500, message, "server_error", "internal_error")
