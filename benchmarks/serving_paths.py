"""The paths that `make bench-serving` compares, and their processes.

All paths lead to the same simulated engines, each started by its own worker: to the engines alone,
through a bare relay of one and two hops, through Dynamometer's frontend and workers, and through
SGLang's router and NVIDIA Dynamo where an interpreter with them is given. NVIDIA Dynamo's engine is
a part of its worker, and simulated in the same way.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from starting import started

from dynamometer.http.addresses import free_port

MODEL = "mock"
DIRECT, RELAY, OURS, ROUTER = "engines alone", "bare relay", "Dynamometer", "sglang-router"
DYNAMO = "NVIDIA Dynamo (worker: with the engine)"
_RELAY_SCRIPT = Path(__file__).with_name("serving_relay.py")
_DYNAMO_WORKER = Path(__file__).with_name("serving_dynamo_worker.py")
_DYNAMO_PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")
_DYNAMO_HOSTS = ("DYN_SYSTEM_HOST", "DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST",
                 "DYN_EVENT_PLANE_HOST")  # fmt: skip
_STARTS_WITHIN = 150.0
_DYNO = (sys.executable, "-m", "dynamometer")
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ServingPath:
    """One way to the engines.

    Attributes:
        name: the name in the tables.
        hops: the number of processes that relay a chunk; 0 for the engines themselves.
        ports: the ports that clients use.
        front: the processes of the first hop.
        back: the processes of the second hop.
        engines: the processes of the engines.
        pages: the ports of the `/metrics` pages.
        same_bytes: the answers have the same bytes as the engines' own.
    """

    name: str
    hops: int
    ports: list[int]
    engines: list[psutil.Process]
    front: list[psutil.Process] = field(default_factory=list)
    back: list[psutil.Process] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    same_bytes: bool = True


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Simulated engines, each with the worker that has started it.

    Attributes:
        place: the directory of logs and of the discovery.
        ports: the ports of the engines.
        engines: the processes of the engines.
        workers: the processes of the workers, without the engines.
        pages: the system ports of the workers.
    """

    place: Path
    ports: list[int]
    engines: list[psutil.Process]
    workers: list[psutil.Process]
    pages: list[int]

    def direct(self) -> ServingPath:
        return ServingPath(name=DIRECT, hops=0, ports=self.ports, engines=self.engines)


def fleet(
    place: Path, *, count: int, rate: float, first_token_seconds: float
) -> contextlib.AbstractContextManager[Fleet]:
    """Run simulated engines with their workers, and wait until they are ready.

    Args:
        place: an empty directory.
        count: the number of engines.
        rate: tokens per second of each stream.
        first_token_seconds: the time before the first token.
    """
    flags = ["--engine", "mocker", "--model", MODEL, "--tokens-per-second", str(rate)]
    flags += ["--first-token-seconds", str(first_token_seconds)]
    return _fleet(place, flags, count=count)


def sglang_fleet(place: Path, model: Path) -> contextlib.AbstractContextManager[Fleet]:
    """Run one real engine with its worker, and wait until it is ready.

    Args:
        place: an empty directory.
        model: the model's directory.
    """
    return _fleet(place, ["--model", str(model)], count=1)


@contextlib.contextmanager
def _fleet(place: Path, flags: list[str], *, count: int) -> Iterator[Fleet]:
    place.mkdir(parents=True, exist_ok=True)
    found = Fleet(place=place, ports=[], engines=[], workers=[], pages=[])
    command = [*_DYNO, "sglang", *flags, "--enable-metrics", "--system-port", "0"]
    logs = [place / f"worker-{number}.log" for number in range(count)]
    with contextlib.ExitStack() as stack:
        for log in logs:
            process = stack.enter_context(started(command, log, _variables(place)))
            found.workers.append(psutil.Process(process.pid))
        for log, worker in zip(logs, found.workers, strict=True):
            page = int(_logged(log, r"metrics and health: http://[^:]+:(\d+)/metrics"))
            _until(partial(_is_healthy, page), log)
            engine = worker.children()[0]
            words = engine.cmdline()
            found.pages.append(page)
            found.ports.append(int(words[words.index("--port") + 1]))
            found.engines.extend([engine, *engine.children(recursive=True)])
        yield found


@contextlib.contextmanager
def relays(found: Fleet, *, processes: int) -> Iterator[list[ServingPath]]:
    """Run the bare relay of one hop, and of two hops with this number of processes in front."""
    with contextlib.ExitStack() as stack:
        numbers = iter(range(1000))

        def relay(targets: list[int], port: int = 0) -> tuple[psutil.Process, int]:
            log = found.place / f"relay-{next(numbers)}.log"
            command = [sys.executable, str(_RELAY_SCRIPT), str(port), *map(str, targets)]
            process = stack.enter_context(started(command, log, {}))
            return psutil.Process(process.pid), int(_logged(log, r"port (\d+)"))

        def path(hops: int, targets: list[int], count: int, back: list[psutil.Process]) -> None:
            first, port = relay(targets)
            front = [first, *(relay(targets, port)[0] for _ in range(count - 1))]
            paths.append(
                ServingPath(
                    name=_relay_name(hops, count), hops=hops, ports=[port], engines=found.engines,
                    front=front, back=back,
                )
            )  # fmt: skip

        paths: list[ServingPath] = []
        path(1, found.ports, 1, [])
        far = [relay([port]) for port in found.ports]
        for count in sorted({1, processes}):
            path(2, [port for _, port in far], count, [process for process, _ in far])
        yield paths


def path_names(processes: Sequence[int], *, router: bool, dynamo: bool) -> list[str]:
    """Return the names of all paths.

    Args:
        processes: the numbers of frontend processes.
        router: SGLang's router is one of the paths.
        dynamo: NVIDIA Dynamo is one of the paths.
    """
    relays = [_relay_name(1, 1)]
    relays += [_relay_name(2, count) for count in sorted({1, max(processes)})]
    ours = [OURS + _times(count) for count in processes]
    return [DIRECT, *relays, *ours, *[ROUTER] * router, *[DYNAMO] * dynamo]


def _relay_name(hops: int, processes: int) -> str:
    return f"{RELAY}, {hops} hop{'s' * (hops > 1)}{_times(processes)}"


def _times(processes: int) -> str:
    return f", {processes} processes in front" if processes > 1 else ""


@contextlib.contextmanager
def frontend(found: Fleet, *, processes: int, model: str = MODEL) -> Iterator[ServingPath]:
    """Run Dynamometer's frontend before the workers of the engines.

    Args:
        found: the engines with their workers.
        processes: the number of frontend processes.
        model: the name of the model.
    """
    port = free_port()
    command = [*_DYNO, "frontend", "--http-port", str(port)]
    if processes > 1:
        command += ["--processes", str(processes)]
    log = found.place / f"frontend-{processes}.log"
    with started(command, log, _variables(found.place)) as process:
        _until(lambda: model.encode() in _get(port, "/v1/models"), log)
        first = psutil.Process(process.pid)
        yield ServingPath(
            name=OURS + _times(processes),
            hops=2,
            ports=[port],
            engines=found.engines,
            front=[first, *first.children(recursive=True)],
            back=found.workers,
            pages=[port, *found.pages],
        )


def has_processes() -> bool:
    """Return whether `dyno frontend` has the flag `--processes`."""
    done = subprocess.run([*_DYNO, "frontend", "--help"], capture_output=True, text=True)
    return "--processes" in done.stdout


@contextlib.contextmanager
def router(found: Fleet, *, python: str) -> Iterator[ServingPath]:
    """Run SGLang's router before the engines.

    Args:
        found: the engines.
        python: an interpreter that has `sglang-router`.
    """
    port, page = free_port(), free_port()
    command = [python, "-m", "sglang_router.launch_router", "--policy", "round_robin"]
    command += ["--host", _LOOPBACK, "--port", str(port), "--prometheus-port", str(page)]
    command += ["--log-level", "warn", "--worker-urls"]
    command += [f"http://{_LOOPBACK}:{port}" for port in found.ports]
    log = found.place / "router.log"
    with started(command, log, {}) as process:
        _until(lambda: MODEL.encode() in _get(port, "/v1/models"), log)
        first = psutil.Process(process.pid)
        yield ServingPath(
            name=ROUTER,
            hops=1,
            ports=[port],
            engines=found.engines,
            front=[first, *first.children(recursive=True)],
        )


@contextlib.contextmanager
def dynamo(
    place: Path, *, python: str, count: int, rate: float, first_token_seconds: float
) -> Iterator[ServingPath]:
    """Run NVIDIA Dynamo's frontend, and workers with simulated engines inside.

    Args:
        place: a directory for logs and the discovery.
        python: an interpreter that has `ai-dynamo`.
        count: the number of workers.
        rate: tokens per second of each stream.
        first_token_seconds: the time before the first token.
    """
    temporary = place / "dynamo"
    temporary.mkdir()
    variables = dict.fromkeys(_DYNAMO_HOSTS, _LOOPBACK)
    variables |= {"DYN_FILE_KV": str(temporary / "discovery"), "TMPDIR": str(temporary)}
    port = free_port()
    command = [python, "-m", "dynamo.frontend", "--http-host", _LOOPBACK, "--http-port", str(port)]
    worker = [python, str(_DYNAMO_WORKER), MODEL, str(rate), str(first_token_seconds)]
    log = place / "dynamo-frontend.log"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(started([*command, *_DYNAMO_PLANES], log, variables))
        logs = [place / f"dynamo-worker-{number}.log" for number in range(count)]
        back = [stack.enter_context(started(worker, one, variables)) for one in logs]
        for one in logs:
            _logged(one, "(serving)")
        _until(lambda: MODEL.encode() in _get(port, "/v1/models"), log)
        yield ServingPath(
            name=DYNAMO,
            hops=2,
            ports=[port],
            engines=[],
            front=[psutil.Process(first.pid)],
            back=[psutil.Process(process.pid) for process in back],
            same_bytes=False,
        )


def _variables(place: Path) -> dict[str, str]:
    return {"DYN_FILE_KV": str(place / "discovery")}


def _logged(log: Path, pattern: str) -> str:
    """Wait for a pattern in a log, and return its first group."""
    _until(lambda: re.search(pattern, log.read_text(errors="replace")) is not None, log)
    match = re.search(pattern, log.read_text(errors="replace"))
    assert match is not None
    return match[1]


def _until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while not condition():
        if time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            sys.exit(f"{log.stem} was not ready after {_STARTS_WITHIN:.0f} s:\n{text}")
        time.sleep(0.05)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()
    return b""
