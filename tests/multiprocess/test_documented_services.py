"""The services of docs/multiprocess.md, run as they are written there."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from pages import assert_same_lines, values
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from processes import Process, running

DOCUMENT = Path(__file__).parents[2] / "docs" / "multiprocess.md"
WORKERS = 3
CLIENTS = 2 * WORKERS
BOOT_SECONDS = 40.0  # of several processes that import everything on two busy cores
pytestmark = pytest.mark.slow

# What the service itself does. A worker ends with its supervisor, however that ends.
WORK = """
import ctypes
import os
import signal
import time

from prometheus_client import Counter, Gauge, Histogram, Summary

ctypes.CDLL(None).prctl(1, signal.SIGKILL)
DONE = Counter("done", "Requests done.", ["path"])
TOOK = Histogram("took_seconds", "What they took.", buckets=[0.25, 1.0])
SIZE = Summary("size_bytes", "Of their bodies.")
GAUGES = [
    Gauge(f"last_{mode}", "A gauge of this mode.", multiprocess_mode=mode)
    for mode in ("all", "liveall", "max", "livesum", "mostrecent")
]


def work():
    time.sleep(0.02)  # so that other workers get the next requests
    DONE.labels("/work").inc()
    TOOK.observe(0.5)
    SIZE.observe(3)
    for gauge in GAUGES:
        gauge.set(2.0)
    return str(os.getpid())
"""
WSGI = """
def application(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    data = work().encode()
    start_response("200 OK", [("Content-Length", str(len(data)))])
    return [data]
"""
ASGI = """
@app.get("/work")
def answer() -> Response:
    return Response(work())
"""


def snippets(heading: str) -> list[str]:
    """The code in a section of the document, one text for each indented block."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    section, _, _ = rest.partition("\n## ")
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", section, re.MULTILINE)
    return [dedent(block).strip() + "\n" for block in blocks if block.strip()]


class Service:
    """A service that runs, and its clients."""

    def __init__(self, process: Process, port: int, directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.done = 0
        self._port = port

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[bytes, str]:
        """The body and its content type."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=BOOT_SECONDS)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        assert response.status == 200, (response.status, body, self.process.log[-4000:])
        return body, response.headers["Content-Type"] or ""

    def pages(self) -> list[bytes]:
        """Pages of several workers."""
        with ThreadPoolExecutor(CLIENTS) as clients:
            return list(clients.map(lambda _: self.get("/metrics")[0], range(2 * CLIENTS)))

    def page(self) -> bytes:
        """The page, which all workers agree on when no process is starting."""
        first, *others = self.pages()
        for other in others:
            assert_same_lines(other, first)
        return first

    def peer_page(self) -> bytes:
        """prometheus_client's page of the same directory."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self.directory))
        return generate_latest(registry)

    def work(self, *, without: int = 0) -> set[int]:
        """Send requests until all workers have done some; their pids.

        Args:
            without: one that has ended.
        """
        found: set[int] = set()

        def all_have_worked() -> bool:
            with ThreadPoolExecutor(CLIENTS) as clients:
                bodies = list(clients.map(lambda _: self.get("/work")[0], range(CLIENTS)))
            self.done += len(bodies)
            found.update(int(body) for body in bodies)
            return len(found) == WORKERS

        eventually(all_have_worked)
        assert without not in found
        return found

    def assert_counted(self) -> None:
        """The totals are those of all requests ever done, also while a process starts."""
        for page in self.pages():
            found = values(page)
            assert found['done_total{path="/work"}'] == self.done
            assert found['took_seconds_bucket{le="0.25"}'] == 0
            assert found['took_seconds_bucket{le="1.0"}'] == self.done
            assert found["took_seconds_count"] == self.done
            assert found["took_seconds_sum"] == 0.5 * self.done
            assert found["size_bytes_sum"] == 3 * self.done

    def kill_a_worker(self, pids: set[int]) -> int:
        """The one that was killed; its supervisor has noticed."""
        pid = min(pids)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(pid))
        return pid

    def live_files(self, pid: int) -> list[Path]:
        return list(self.directory.glob(f"gauge_live*_{pid}.db"))


def eventually(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def service(
    tmp_path: Path, source: str, command: list[str], listens: str, booted: str
) -> Iterator[Service]:
    """Run a service; whatever happens, none of its processes is left."""
    directory = tmp_path / "metrics"
    directory.mkdir()
    (tmp_path / "service.py").write_text(source)
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    with running([sys.executable, "-m", *command], tmp_path / "log", environment) as process:
        try:
            port = process.wait_for(rf"{listens} http://127\.0\.0\.1:(\d+)", within=BOOT_SECONDS)
            process.wait_for(rf"(?s)(?:{booted}.*){{{WORKERS}}}", within=BOOT_SECONDS)
            yield Service(process, int(port[1]), directory)
        finally:
            process.end()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_gunicorn(tmp_path: Path) -> None:
    configuration, application = snippets("gunicorn")
    (tmp_path / "gunicorn.conf.py").write_text(configuration)
    command = ["gunicorn", "--config", str(tmp_path / "gunicorn.conf.py"), "--no-control-socket"]
    command += ["--chdir", str(tmp_path), "--bind", "127.0.0.1:0", "--workers", str(WORKERS)]
    source = WORK + application + WSGI
    with service(
        tmp_path, source, [*command, "service:application"], "Listening at:", "Booting worker"
    ) as ours:
        pids = ours.work()
        assert_same_lines(ours.page(), ours.peer_page())
        ours.assert_counted()
        assert ours.get("/metrics")[1] == CONTENT_TYPE_PLAIN_0_0_4
        assert values(ours.page())["last_livesum"] == 2.0 * WORKERS
        killed = min(pids)
        assert ours.live_files(killed)
        assert f'last_liveall{{pid="{killed}"}}' in values(ours.page())

        assert ours.kill_a_worker(pids) == killed
        eventually(lambda: not ours.live_files(killed))  # child_exit has marked it dead
        ours.assert_counted()
        for page in ours.pages():
            assert f'last_liveall{{pid="{killed}"}}' not in values(page)
            assert f'last_all{{pid="{killed}"}}' in values(page)

        ours.work(without=killed)
        assert_same_lines(ours.page(), ours.peer_page())
        ours.assert_counted()
        assert values(ours.page())["last_livesum"] == 2.0 * WORKERS
    assert not psutil.pid_exists(ours.process.pid)


def test_fastapi(tmp_path: Path) -> None:
    (application,) = snippets("FastAPI")
    command = ["uvicorn", "--app-dir", str(tmp_path), "--host", "127.0.0.1", "--port", "0"]
    command += ["--workers", str(WORKERS), "service:app"]
    with service(
        tmp_path, WORK + application + ASGI, command, "running on", "startup complete"
    ) as ours:
        pids = ours.work()
        assert_same_lines(ours.page(), ours.peer_page())
        ours.assert_counted()
        page, content_type = ours.get("/metrics", {"Accept": "application/openmetrics-text"})
        assert content_type.startswith("application/openmetrics-text")
        assert page.endswith(b"# EOF\n")
        page, content_type = ours.get("/metrics?name[]=last_max&name[]=size_bytes_sum")
        assert content_type == CONTENT_TYPE_PLAIN_0_0_4
        assert values(page).keys() == {"last_max", "size_bytes_count", "size_bytes_sum"}

        killed = ours.kill_a_worker(pids)
        ours.assert_counted()
        ours.work(without=killed)
        ours.assert_counted()
        assert_same_lines(ours.page(), ours.peer_page())
        assert values(ours.page())["last_livesum"] == 2.0 * (WORKERS + 1)
        mark_process_dead(killed, str(ours.directory))
        assert values(ours.page())["last_livesum"] == 2.0 * WORKERS
        assert_same_lines(ours.page(), ours.peer_page())
    assert not psutil.pid_exists(ours.process.pid)
