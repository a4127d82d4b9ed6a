"""`dyno observe` as a user runs it, with a simulated engine, and a Grafana that only records."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from processes import PYTHON, Process, running
from prometheus import Prometheus

DYNO = (PYTHON, "-m", "dynamometer.cli")
# A real Grafana is not available: this one records how it was started, and answers.
GRAFANA = f"""\
#!{PYTHON}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/", "/api/health") else 404)
        self.end_headers()

address = os.environ["GF_SERVER_HTTP_ADDR"], int(os.environ["GF_SERVER_HTTP_PORT"])
server = HTTPServer(address, Handler)
record = {{"flags": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}}
Path(os.environ["RECORD"]).write_text(json.dumps(record))
server.serve_forever()
"""


def program(directory: Path, name: str, text: str) -> Path:
    """Write an executable script into a directory for PATH."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def observing(
    directory: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Run `dyno observe` on any free ports, with its files in `directory`."""
    common = ("--prometheus-port", "0", "--grafana-port", "0", "--scrape-interval", "1")
    command = [*DYNO, "observe", "--directory", str(directory), *common, *flags]
    log = directory.with_name(f"{directory.name}.log")
    with running(command, log, dict(environment or {})) as process:
        yield process


@contextlib.contextmanager
def frontend(place: Path, *flags: str) -> Iterator[tuple[str, str]]:
    """Run a frontend; return its address and the URL of its list of targets."""
    command = [*DYNO, "frontend", "--http-port", "0", "--ops-port", "0", *flags]
    with running(command, place / "frontend.log", discovery(place)) as process:
        url = process.wait_for(r"OpenAI-compatible at (\S+)/v1", within=20)[1]
        yield url, process.wait_for(r"ops routes at (\S+):", within=20)[1] + "/sd"


@contextlib.contextmanager
def worker(place: Path) -> Iterator[str]:
    """Run a worker around a simulated engine until it is ready, and return its page's address."""
    with worker_process(place) as (address, _):
        yield address


@contextlib.contextmanager
def worker_process(place: Path, log: str = "worker.log") -> Iterator[tuple[str, Process]]:
    """Run a worker as `worker` does, and return the process, too."""
    command = [*DYNO, "sglang", "--engine", "mocker", "--model", "mock", "--enable-metrics"]
    variables = discovery(place) | {"DYN_SYSTEM_PORT": "0"}
    with running(command, place / log, variables) as process:
        address = process.wait_for(r"metrics and health: http://(\S+)/metrics", within=20)[1]
        process.wait_for(r"ready", within=30)
        yield address, process


def discovery(place: Path) -> dict[str, str]:
    return {"DYN_FILE_KV": str(place / "discovery")}


def prometheus_of(process: Process) -> Prometheus:
    """Return the Prometheus of a `dyno observe`, when it answers."""
    return Prometheus(process.wait_for(r"Prometheus answers at (\S+)", within=60)[1], process)


def observe_once(
    *flags: str, within: float = 30, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a `dyno observe` that ends by itself."""
    return subprocess.run(
        [*DYNO, "observe", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
