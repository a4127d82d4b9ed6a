"""The handlers of a server by method and path, and its errors in OpenAI's form."""

from __future__ import annotations

import logging
from urllib.parse import parse_qs

from dynamometer.http import openai_errors
from dynamometer.http.exchange import Handler, Request
from dynamometer.http.messages import Refusal, Response
from dynamometer.http.origins import Origins
from dynamometer.metrics import scraping

logger = logging.getLogger(__name__)


class Handlers:
    """A table of handlers.

    A handler of POST is called when the head was received, and reads the body. A handler of GET is
    called after the whole request, whose body is ignored.
    """

    def __init__(self, origins: Origins | None = None) -> None:
        """Create an empty table.

        Args:
            origins: the origins whose web pages may read the responses; none by default.
        """
        self._origins = origins or Origins()
        self._methods: dict[str, dict[str, Handler]] = {}
        self._below: dict[str, Handler] = {}

    def get(self, path: str, handler: Handler) -> None:
        """Answer GET and HEAD at `path`; if `path` ends with a slash, at all paths below `path`."""
        if path.endswith("/"):
            self._below[path] = handler
        else:
            self._methods.setdefault(path, {}).update(GET=handler, HEAD=handler)

    def post(self, path: str, handler: Handler) -> None:
        """Answer POST at `path`."""
        self._methods.setdefault(path, {})["POST"] = handler

    async def answer(self, request: Request) -> Response | None:
        """Answer one request; see `Application.answer`."""
        request.response_headers = self._origins.headers(request.headers)
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return openai_errors.refused(refusal)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return openai_errors.internal()

    def refuse(self, refusal: Refusal) -> Response:
        """Return the response to a request that cannot be read."""
        return openai_errors.refused(refusal)

    async def _answer(self, request: Request) -> Response | None:
        methods = self._find(request.path)
        if not methods:
            return openai_errors.unknown_path(request.method, request.path)
        handler = methods.get(request.method)
        if handler is None:
            allowed = ", ".join(sorted(methods))
            if request.method == "OPTIONS":
                answer = self._origins.preflight(request.headers, allowed.encode())
                if answer is not None:
                    return answer
            return openai_errors.wrong_method(request.method, request.path, allowed)
        if request.method != "POST":
            await request.read()
        return await handler(request)

    def _find(self, path: str) -> dict[str, Handler]:
        methods = self._methods.get(path)
        if methods is not None:
            return methods
        for prefix, handler in self._below.items():
            if path.startswith(prefix) and path != prefix:
                return {"GET": handler, "HEAD": handler}
        return {}


def scrapes_by(render: scraping.Render) -> Handler:
    """Return the handler of a page of metrics, which `render` renders."""

    async def handle(request: Request) -> Response:
        body, headers = await scraping.answer(
            render,
            accept=request.headers.all(b"accept").decode("latin-1"),
            accept_encoding=request.headers.all(b"accept-encoding").decode("latin-1"),
            names=parse_qs(request.query.decode("latin-1")).get("name[]", ()),
        )
        lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        return Response(200, body, lines)

    return handle
