"""Engines started by their own command line, and exporters beside them."""

from __future__ import annotations

import contextlib
import os
import re
import socketserver
import subprocess
import threading
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import cast

from prometheus_client.parser import text_string_to_metric_families as parse

from dynamometer.engines.sglang import CPU_FLAGS
from dynamometer.http.addresses import free_port
from processes import PYTHON, Process, running
from stack import READY_SECONDS, eventually, http

RUNTIME_LABELS = {"dynamo_namespace", "dynamo_component", "dynamo_endpoint", "model", "worker_id"}
MOVING = re.compile(r"cpu_seconds|idle_seconds|http_re|scheduler_stage|get_loads|throughput")


@dataclass
class Sglang:
    process: Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """The name of the engine in an exporter."""
        return f"sglang-{self.port}"

    def complete(self, count: int = 1, tokens: int = 4) -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": tokens, "ignore_eos": True}
        for _ in range(count):
            assert http(f"{self.url}/v1/completions", body).status == 200

    def page(self) -> str:
        return http(f"{self.url}/metrics").body.decode()

    def kill(self) -> None:
        """Kill all processes of the engine, as the kernel does when memory runs out."""
        for process in [*self.process.descendants()]:
            with contextlib.suppress(Exception):
                process.kill()
        self.process.signal(9)
        self.process.wait(within=10)

    def terminate(self) -> None:
        self.process.signal(15)
        self.process.wait(within=30)


@contextlib.contextmanager
def sglang(model: Path, log: Path, *, port: int = 0, **environment: str) -> Iterator[Sglang]:
    """Start SGLang by its own command line, and wait until it answers."""
    port = port or free_port()
    flags = [word for pair in CPU_FLAGS.items() for word in pair if word is not None]
    command = [PYTHON, "-m", "sglang.launch_server", "--model-path", str(model), *flags]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    variables = {"DYNAMOMETER_SGLANG_CPU": "1", "HF_HUB_OFFLINE": "1", **environment}
    with running([*command, "--enable-metrics"], log, variables) as process:
        found = Sglang(process, port)

        def answers() -> bool:
            assert process.running, f"the engine ended:\n{process.log[-3000:]}"
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                return http(f"{found.url}/health").status == 200
            return False

        eventually(answers, within=READY_SECONDS, what=f"engine ready\n{process.log[-2000:]}")
        yield found


# A server that is launched by SGLang's command line. The status of /health is in the file `status`.
IMITATION = """
import http.server, pathlib, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = pathlib.Path(__file__).parent.parent / "status"
        self.send_response(int(status.read_text()) if self.path == "/health" else 200)
        self.end_headers()

    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Imitation:
    """A process with SGLang's command line that answers /health, and has no files."""

    def __init__(self, process: Process, directory: Path, port: int) -> None:
        self.process = process
        self.pid = process.pid
        self.port = port
        self.name = f"sglang-{port}"
        self._directory = directory

    def set_status(self, status: int) -> None:
        (self._directory / "status").write_text(str(status))


@contextlib.contextmanager
def imitation(directory: Path, *, status: int = 200) -> Iterator[Imitation]:
    """An imitation of SGLang, whose /health answers `status`."""
    package = directory / "imitation" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(IMITATION)
    port = free_port()
    command = [PYTHON, "-m", "sglang.launch_server", "--model", "m", "--port", str(port)]
    log = directory / "imitation.log"
    with running(command, log, {"PYTHONPATH": str(package.parent)}) as process:
        found = Imitation(process, package.parent, port)
        found.set_status(status)
        yield found


@dataclass
class Exporter:
    process: Process
    url: str

    @property
    def log(self) -> str:
        return self.process.log

    def page(self) -> str:
        return http(f"{self.url}/metrics").body.decode()

    def health(self) -> tuple[int, Mapping[str, Mapping[str, str]]]:
        answer = http(f"{self.url}/health")
        return answer.status, cast(Mapping[str, Mapping[str, str]], answer.json())

    def ready(self, name: str) -> bool:
        return self.health()[1]["endpoints"].get(name) == "ready"

    def wait_until_ready(self, name: str) -> Exporter:
        eventually(lambda: self.ready(name), within=30, what=f"{name} ready:\n{self.log}")
        return self

    def total(self, family: str) -> float:
        return total(self.page(), family)


@contextlib.contextmanager
def exporter(
    directory: Path, *flags: str, before: Sequence[str] = (), **environment: str
) -> Iterator[Exporter]:
    """Start an exporter on a free port.

    Args:
        directory: the place of the log and of discovery.
        flags: flags of `dyno exporter`.
        before: a command that runs the exporter, such as `unshare`.
        environment: environment variables.
    """
    log = directory / f"exporter-{len(list(directory.glob('exporter-*.log')))}.log"
    command = [*before, PYTHON, "-m", "dynamometer", "exporter", "--system-port", "0", *flags]
    variables = {"DYN_FILE_KV": str(directory / "discovery"), **environment}
    with running(command, log, variables) as process:
        url = process.wait_for(r"metrics and health: (\S+)/metrics", within=20)[1]
        yield Exporter(process, url)
        if before:  # unshare does not forward signals
            for inner in process.descendants():
                inner.terminate()


def total(page: str, family: str) -> float:
    """Return the sum of all series of a sample name; fail if there are none."""
    found = [s.value for f in parse(page) for s in f.samples if s.name == family]
    assert found, f"no {family} on the page"
    return sum(found)


def series(
    page: str, prefix: str = "sglang:"
) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the series of the families with this prefix, without the labels of the runtime."""
    return {
        (s.name, frozenset((k, v) for k, v in s.labels.items() if k not in RUNTIME_LABELS)): s.value
        for family in parse(page)
        for s in family.samples
        if s.name.startswith(prefix)
    }


def gauges(page: str, prefix: str = "sglang:") -> set[str]:
    """Return the gauges that have a series; a header alone may belong to another engine."""
    return {
        family.name
        for family in parse(page)
        if family.type == "gauge" and family.samples and family.name.startswith(prefix)
    }


def assert_same_samples(ours: str, own: str) -> None:
    """Compare all samples, except those that change without a request."""
    one, other = series(ours), series(own)
    assert one.keys() == other.keys()
    still = {key for key in other if not MOVING.search(key[0])}
    assert len(still) > 300
    assert {key: str(one[key]) for key in still} == {key: str(other[key]) for key in still}


WRITER = """
import sys
from prometheus_client import Counter, Gauge, values
if sys.argv[1]:
    values.ValueClass = values.MultiProcessValue(lambda: sys.argv[1])
requests = Counter("app_requests", "Requests.")
busy = Gauge("app_busy", "Requests in progress.", multiprocess_mode="livesum")
requests.inc(float(sys.argv[2]))
busy.set(float(sys.argv[2]))
print("written", flush=True)
sys.stdin.readline()
requests.inc()
print("counted", flush=True)
sys.stdin.readline()
"""


class Writer:
    """A process that has set a gauge and a counter, and waits for `count`."""

    def __init__(self, directory: Path, value: float, *, identifier: str = "") -> None:
        self._popen = subprocess.Popen(
            [PYTHON, "-c", WRITER, identifier, str(value)],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._popen.pid
        self._await("written")

    def count(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()
        self._await("counted")

    def _await(self, word: str) -> None:
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline().strip() == word

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Page(socketserver.ThreadingTCPServer):
    """A server of one text page, whose /health answers 200 where that is among `paths`."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, text: str, *, paths: Sequence[str] = ("/metrics",)) -> None:
        self.text = text  # may be replaced
        super().__init__(("127.0.0.1", port), _handler(paths))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()


def _handler(paths: Sequence[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path in paths
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(cast(Page, self.server).text.encode() if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    return Handler
