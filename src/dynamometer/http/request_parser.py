"""Parse the requests on one connection with `httptools`, within limits.

The parser refuses each message that llhttp refuses in its strict mode (conflicting lengths, bare
line feeds, spaces in names), each transfer encoding except `chunked` in HTTP/1.1, and several
hosts. A proxy in front could parse such a message differently (request smuggling).
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

import httptools

from dynamometer.http.exchange import Request, Sender, too_large
from dynamometer.http.messages import LONGEST_HEAD, LONGEST_LINE, Headers, Refusal

# The most bytes in sequence that are not bytes of a body: a head with a long target, chunk
# extensions, or trailers.
_MOST_WITHOUT_BODY: Final = 2 * LONGEST_HEAD
# The start of a target as a client sends it to a proxy (RFC 9112, 3.2.2).
_ORIGIN: Final = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]+")
_VERSIONS: Final = ("1.0", "1.1")


class RequestParser:
    """The parser of one connection.

    Attributes:
        requests: the requests whose head is complete and that no handler has received.
        in_head: True while a head is partly received.
        ended: True if all further bytes are ignored.
    """

    def __init__(self, sender: Sender, body_limit: int, head_limit: int = LONGEST_HEAD) -> None:
        """Create the parser of a new connection.

        Args:
            sender: the sender of the responses.
            body_limit: the most bytes of a body.
            head_limit: the most bytes of the headers of a request.
        """
        self.requests: deque[Request] = deque()
        self.in_head = self.ended = False
        self._sender = sender
        self._body_limit = body_limit
        self._head_limit = head_limit
        self._request: Request | None = None  # whose body is being parsed
        self._without_body = 0
        self._target = b""
        self._headers = Headers()
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """Parse bytes: add requests to `requests`, and pieces to the body of the last request."""
        if self.ended or self._parser is None:
            return
        self._without_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserCallbackError as error:
            fault = error.__context__
            if not isinstance(fault, Refusal):
                raise
            self.refuse(fault)
        except httptools.HttpParserError as error:
            self.refuse(Refusal(400, f"The request is not valid HTTP: {error}"))
        else:
            if self._without_body > _MOST_WITHOUT_BODY:
                self.refuse(_long_head())

    def _decline(self, rest: bytes) -> None:
        """Parse the request again without its offer of another protocol (RFC 9110, 7.8)."""
        request = self.requests[-1]
        if request.method == "CONNECT":
            self.ended = True
            return
        self.requests.pop()
        version = b"HTTP/1.1" if request.chunked else b"HTTP/1.0"
        lines = [b"%b %b %b" % (request.method.encode(), self._target, version)]
        lines += [b"%b: %b" % header for header in request.headers if header[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        self.feed(b"\r\n".join((*lines, b"", rest)))

    def refuse(self, refusal: Refusal) -> None:
        """Refuse the request that is being parsed, and ignore all further bytes."""
        self.ended = True
        if self.in_head or self._request is None:
            self._add_request()
        request = self._request
        if request is not None:
            request.keep_alive = False
            request.invalid = refusal.status in (400, 408)
            request.refuse(refusal)

    def close(self) -> None:
        """Release the parser, which refers to this object."""
        self.ended = True
        self.requests.clear()
        self._parser = None

    # Called by httptools.

    def on_message_begin(self) -> None:
        """Prepare to parse a head."""
        self.in_head = True
        self._without_body = 0
        self._target = b""
        self._headers = Headers()

    def on_url(self, part: bytes) -> None:
        """Add a part of the request's target."""
        self._target += part
        if len(self._target) > LONGEST_LINE:
            raise Refusal(414, f"The URL is longer than {LONGEST_LINE} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; ignore a trailer."""
        if self.in_head:
            self._headers.append((name.lower(), value))
            if len(name) + len(value) > LONGEST_LINE:
                raise _long_head()

    def on_headers_complete(self) -> None:
        """Check the head, and add the request."""
        assert self._parser is not None
        if sum(len(name) + len(value) + 4 for name, value in self._headers) > self._head_limit:
            raise _long_head()
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            raise Refusal(400, f"HTTP/{version} is not supported: send HTTP/1.1")
        if sum(name == b"host" for name, _ in self._headers) > 1:
            raise Refusal(400, "A request must have one Host header")
        encoding = self._headers.all(b"transfer-encoding").lower()
        if encoding and (encoding != b"chunked" or version == "1.0"):
            raise Refusal(400, "A Transfer-Encoding must be chunked, and the version HTTP/1.1")
        request = self._add_request()
        request.chunked = version == "1.1"
        request.keep_alive = self._parser.should_keep_alive()
        expectation = self._headers.get(b"expect").lower()
        request.expects = request.chunked and expectation == b"100-continue"
        if int(self._headers.get(b"content-length") or 0) > self._body_limit:
            request.refuse(too_large(self._body_limit))

    def on_body(self, data: bytes) -> None:
        """Add a piece of a body."""
        self._without_body = 0
        if self._request is not None:
            self._request.receive(data, self._body_limit)

    def on_message_complete(self) -> None:
        """Mark the body of the request as complete."""
        if self._request is not None:
            self._request.finish()
            self._request = None

    def _add_request(self) -> Request:
        assert self._parser is not None
        target = self._target
        if origin := _ORIGIN.match(target):
            target = target[origin.end() :]
            if not target.startswith(b"/"):
                target = b"/" + target
        request = Request(self._sender, self._parser.get_method().decode(), target, self._headers)
        self.in_head = False
        self._request = request
        self.requests.append(request)
        return request


def _long_head() -> Refusal:
    return Refusal(
        431,
        "The request's headers, chunk extensions or trailers are too long: the limit is "
        f"{LONGEST_LINE} bytes a line and {LONGEST_HEAD} bytes in all",
    )
