"""A server of pages that a test writes, for an exporter or a Prometheus that scrapes them."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler

Page = tuple[str, bytes]


@contextlib.contextmanager
def serving(page_of: Callable[[str, Message], Page]) -> Iterator[str]:
    """Serve pages on a loopback port until the context ends; yield `host:port`.

    Args:
        page_of: returns content type and page for the path and the headers of a request.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content_type, page = page_of(self.path, self.headers)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
