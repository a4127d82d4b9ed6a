"""A frontend and workers around the real engine, as a user starts them."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from processes import PYTHON, Process, running

READY_SECONDS = 150


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        content = json.loads(self.body)
        assert isinstance(content, dict)
        return content


def http(url: str, body: object = None, **headers: str) -> Answer:
    """Send GET, or POST if there is a `body`: bytes unchanged, any other value as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read())


def eventually(condition: Callable[[], object], *, within: float, what: str) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)


def ops_url(frontend: Process) -> str:
    """Return the URL of a frontend's ops listener."""
    return frontend.wait_for(r"ops routes at (http://\S+): ", within=20)[1]


@dataclass
class Worker:
    process: Process
    system_url: str
    request_url: str

    def ready(self) -> bool:
        try:
            return http(f"{self.system_url}/health").status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def wait_until_ready(self) -> Worker:
        def ready() -> bool:
            assert self.process.running, f"the worker ended:\n{self.process.log[-3000:]}"
            return self.ready()

        eventually(ready, within=READY_SECONDS, what=f"worker ready\n{self.process.log[-2000:]}")
        return self

    @property
    def engine(self) -> psutil.Process:
        """The engine's first process; a worker may also run py-spy for a moment."""
        children = psutil.Process(self.process.pid).children()
        (first,) = [child for child in children if child.name() != "py-spy"]
        return first

    def titled(self, title: str) -> psutil.Process:
        """Return the only process of the engine with a title, such as `scheduler`."""
        (found,) = [
            child
            for child in self.engine.children(recursive=True)
            if child.cmdline()[:1] == [f"sglang::{title}"]
        ]
        return found

    @property
    def scheduler(self) -> psutil.Process:
        """The only scheduler of the engine."""
        return self.titled("scheduler")

    @property
    def engine_url(self) -> str:
        words = self.engine.cmdline()
        ports = [words[i + 1] for i, word in enumerate(words) if word == "--port"]
        return f"http://127.0.0.1:{ports[-1]}"

    def page(self) -> str:
        return http(f"{self.system_url}/metrics").body.decode()


@dataclass
class Stack:
    """The processes of the main job, and functions that start more of them.

    Attributes:
        variables: environment variables of all processes.
    """

    directory: Path
    model: Path
    discovery: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    frontend_url: str = ""
    frontend: Process | None = None
    worker: Worker | None = None
    _count: list[int] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"DYN_FILE_KV": str(self.discovery), "HF_HUB_OFFLINE": "1", **self.variables}

    def _log(self, name: str) -> Path:
        self._count.append(1)
        return self.directory / f"{name}-{len(self._count)}.log"

    @contextlib.contextmanager
    def run_frontend(self, *flags: str, port: int = 0) -> Iterator[tuple[Process, str]]:
        ports = ("--http-port", str(port), "--ops-port", "0")
        command = [PYTHON, "-m", "dynamometer.frontend", *ports, *flags]
        with running(command, self._log("frontend"), self.environment) as process:
            url = process.wait_for(r"OpenAI-compatible at (\S+)/v1", within=20)[1]
            yield process, url

    @contextlib.contextmanager
    def run_worker(
        self,
        *flags: str,
        system_port: int | None = 0,
        before: Sequence[str] = (),
        **environment: str,
    ) -> Iterator[Worker]:
        """Start a worker.

        Args:
            flags: flags of the worker and of its engine.
            system_port: the system port; None for the default.
            before: a command that runs the worker, such as `unshare`.
            environment: environment variables.
        """
        command = [*before, PYTHON, "-m", "dynamometer.sglang", *flags]
        variables = self.environment | environment
        if system_port is not None:
            variables["DYN_SYSTEM_PORT"] = str(system_port)
        with running(command, self._log("worker"), variables) as process:
            system = process.wait_for(r"metrics and health: (\S+)/metrics", within=20)[1]
            requests = process.wait_for(r"requests: (\S+) |node 0 serves the requests", within=20)[
                1
            ]
            yield Worker(process, system, requests or "")
