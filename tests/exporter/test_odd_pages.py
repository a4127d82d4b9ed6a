"""`dyno exporter --engine-url` beside engines some of whose pages are odd."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse

from exporting import Exporter, exporter
from stack import eventually

A1 = 'a_total{m="1"} 100\n'
A2 = 'a_total{m="2"} 40\n'
BEGAN = "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1000.0\n"


def page(a: str = A1 + A2, b: str = "b_total 7\n", began: str = BEGAN) -> str:
    return f"# TYPE a_total counter\n{a}# TYPE b_total counter\n{b}{began}"


WHOLE = page()
SAME = (100.0, 40.0, 7.0)
# The pages of each engine, in order of the fetches, the last one repeated; and the totals.
ENGINES = {
    "same": ([WHOLE], SAME),
    "missing": ([WHOLE, page(A1), WHOLE], SAME),
    "missing-for-good": ([WHOLE, page(A1)], SAME),
    "lower": ([WHOLE, page(A1 + 'a_total{m="2"} 39\n')], SAME),
    "lower-once": ([WHOLE, page(A1 + 'a_total{m="2"} 39\n'), WHOLE], SAME),
    "zero-once": ([WHOLE, page(A1 + 'a_total{m="2"} 0\n'), WHOLE], SAME),
    "empty": ([WHOLE, "", WHOLE], SAME),
    "10-ms-later": ([WHOLE, page(began=BEGAN.replace("1000.0", "1000.01"))], SAME),
    "part": ([WHOLE, "# TYPE a_total counter\n" + A1, WHOLE], SAME),
    "not-a-page": ([WHOLE, "<html>\n", WHOLE], SAME),
    "one-restarted": ([WHOLE, page(A1 + 'a_total{m="2"} 3\n')], (100.0, 43.0, 7.0)),
    "restarted": (
        [WHOLE, page('a_total{m="1"} 3\na_total{m="2"} 2\n', "b_total 1\n", "")],
        (103.0, 42.0, 8.0),
    ),
    "began-later": ([WHOLE, page(began=BEGAN.replace("1000", "2000"))], (200.0, 80.0, 14.0)),
}


class Pages(socketserver.ThreadingTCPServer):
    """Serves the pages of all engines, each at the path of its name, and counts the fetches."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fetches = dict.fromkeys(ENGINES, 0)  # written by one connection of each engine's

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        body = b""
        if name in ENGINES:
            pages, _ = ENGINES[name]
            body = pages[min(self.server.fetches[name], len(pages) - 1)].encode()
            self.server.fetches[name] += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def pages() -> Iterator[Pages]:
    with Pages() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def totals(found: Exporter) -> Mapping[str, tuple[float, ...]]:
    """Return the counters of each engine on the exporter's page."""
    shown: dict[str, tuple[float, ...]] = {}
    for family in parse(found.page()):
        for sample in family.samples:
            if sample.name in ("a_total", "b_total"):
                engine = sample.labels["engine"]
                shown[engine] = (*shown.get(engine, ()), sample.value)
    return shown


def test_no_odd_page_makes_a_total_that_was_not_counted(tmp_path: Path) -> None:
    with pages() as server:
        flags = [f"--engine-url={name}={server.url(name)}" for name in ENGINES]
        with exporter(tmp_path, *flags, "--prefix", "") as found:

            def fetched() -> bool:
                for name, shown in totals(found).items():
                    _, expected = ENGINES[name]
                    assert all(
                        least <= one <= most
                        for least, one, most in zip(SAME, shown, expected, strict=True)
                    ), (name, shown)
                return min(server.fetches.values()) >= 5

            eventually(fetched, within=60, what=f"five pages of each engine\n{found.log}")
            assert totals(found) == {name: expected for name, (_, expected) in ENGINES.items()}
