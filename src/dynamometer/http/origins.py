"""Cross-origin resource sharing: the web pages that may read responses (the Fetch standard, 3.2).

Without allowed origins, browsers hide the responses from the web pages of other origins.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from dynamometer.http.messages import Headers, Response

_EVERY: Final = "*"
# The time that a browser may cache the response to a preflight request.
_MAX_AGE_SECONDS: Final = b"600"


class Origins:
    """The origins whose pages may read responses."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        """Allow `allowed`, as `settings.origin` returns them; `*` allows every origin."""
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self._every = _EVERY in allowed

    def headers(self, request: Headers) -> Headers:
        """Return the headers that the response to a request needs."""
        if not self._allowed:
            return Headers()
        if self._every:
            return Headers([(b"access-control-allow-origin", b"*")])
        headers = Headers([(b"vary", b"Origin")])
        origin = request.get(b"origin")
        if origin.lower() in self._allowed:
            headers.append((b"access-control-allow-origin", origin))
        return headers

    def preflight(self, request: Headers, methods: bytes) -> Response | None:
        """Return the response to a browser's preflight request; None for any other request.

        Args:
            request: the headers of the request.
            methods: the methods of the route, separated by commas.
        """
        if not (
            self._allowed
            and request.get(b"origin")
            and request.get(b"access-control-request-method")
        ):
            return None
        answer = Response(204, b"")
        answer.headers += [
            (b"access-control-allow-methods", methods),
            (b"access-control-max-age", _MAX_AGE_SECONDS),
        ]
        if wanted := request.all(b"access-control-request-headers"):
            answer.headers.append((b"access-control-allow-headers", wanted))
        return answer
