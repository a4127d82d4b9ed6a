"""The growth of costs for `make bench-serving`: large prompts, long answers, idle connections."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from serving_load import FailedAnswersError, Run, Shape, reference, run
from serving_machine import cpu_seconds, resident_bytes
from serving_paths import Fleet, ServingPath, fleet, frontend
from serving_report import Results
from starting import say

KIB, MIB = 1024, 1024 * 1024
PROMPTS = (KIB, 64 * KIB, MIB, 4 * MIB)
ANSWERS = (64, 1_000, 8_000, 32_000)
CONNECTIONS = 10_000
_LARGE_AT_ONCE = 16
_FAST = 2_000.0  # tokens/s of a stream, so that 32,000 tokens take 16 s
_SPARE_FILES = 500
_RATE, _FIRST_TOKEN_SECONDS = 50.0, 0.05
_REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def growth(place: Path, results: Results) -> None:
    """Measure the frontend and its workers, and add the tables and faults to `results`."""
    allowed = _raise_file_limit()
    with (
        fleet(place / "steady", count=1, rate=_RATE, first_token_seconds=_FIRST_TOKEN_SECONDS) as
        engines, frontend(engines, processes=1) as path,
    ):  # fmt: skip
        for measure in (_prompts, _held_bodies):
            _add(results, *measure(engines, path))
        _add(results, *_idle_connections(engines, path, min(CONNECTIONS, allowed - _SPARE_FILES)))
    with (
        fleet(place / "fast", count=2, rate=_FAST, first_token_seconds=_FIRST_TOKEN_SECONDS) as
        engines, frontend(engines, processes=1) as path,
    ):  # fmt: skip
        _add(results, *_answers(engines, path))


def _add(results: Results, title: str, rows: list[list[str]], faults: list[str]) -> None:
    results.growth.append((title, rows))
    results.faults += faults


def _try(
    faults: list[str], name: str, path: ServingPath, shape: Shape, **load: float
) -> Run | None:
    say(name)
    try:
        return run(
            path, shape, streams=int(load["streams"]), seconds=load["seconds"], clients=1,
            checksum=int(load["checksum"]),
        )  # fmt: skip
    except FailedAnswersError as error:
        faults.append(f"{name}: {error}")
        return None


def _prompts(engines: Fleet, path: ServingPath) -> tuple[str, list[list[str]], list[str]]:
    rows = [
        ["prompt", "CPU of a request, ms: frontend + worker", "p50, ms", "engine alone p50, ms"]
    ]
    faults: list[str] = []
    for size in PROMPTS:
        shape = Shape(
            tokens=1, rate=_RATE, first_token_seconds=_FIRST_TOKEN_SECONDS, prompt_bytes=size
        )
        checksum = reference(engines.direct(), shape)
        load = {"streams": 1, "seconds": 3, "checksum": checksum}
        alone = _try(
            faults, f"prompts of {_size(size)}, engine alone", engines.direct(), shape, **load
        )
        done = _try(faults, f"prompts of {_size(size)}", path, shape, **load)
        if done and alone:
            values = done.values()
            cost = [f"{values[f'{hop} a request'] / 1e3:.2f}" for hop in ("front", "back")]
            p50s = [f"{one.values()['total p50']:.1f}" for one in (done, alone)]
            rows.append([_size(size), " + ".join(cost), *p50s])
    return "Prompts of growing size, one request after another:", rows, faults


def _held_bodies(engines: Fleet, path: ServingPath) -> tuple[str, list[list[str]], list[str]]:
    rows = [
        ["process", "resident before, MiB", "while they stream, MiB", "copies of each body kept"]
    ]
    faults: list[str] = []
    shape = Shape(
        tokens=100, rate=_RATE, first_token_seconds=_FIRST_TOKEN_SECONDS, prompt_bytes=PROMPTS[-1]
    )
    before = resident_bytes(path.front), resident_bytes(path.back)
    done = _try(
        faults, f"{_LARGE_AT_ONCE} streams with prompts of {_size(PROMPTS[-1])}", path, shape,
        streams=_LARGE_AT_ONCE, seconds=3, checksum=reference(engines.direct(), shape),
    )  # fmt: skip
    if done:
        during = done.front_bytes, done.back_bytes
        for name, one, two in zip(("frontend", "worker"), before, during, strict=True):
            copies = (two - one) / _LARGE_AT_ONCE / PROMPTS[-1]
            rows.append([name, f"{one / MIB:.0f}", f"{two / MIB:.0f}", f"{copies:.2f}"])
    title = (
        f"{_LARGE_AT_ONCE} streams in flight, each with a prompt of {_size(PROMPTS[-1])}; "
        "a hop keeps one copy of a body until the head of its response. "
        "The memory was read while the answers streamed, thus after the heads:"
    )
    return title, rows, faults


def _answers(engines: Fleet, path: ServingPath) -> tuple[str, list[list[str]], list[str]]:
    rows = [["tokens", "CPU a chunk, µs: frontend + worker", "resident: frontend + workers, MiB"]]
    faults: list[str] = []
    for tokens in ANSWERS:
        shape = Shape(tokens=tokens, rate=_FAST, first_token_seconds=_FIRST_TOKEN_SECONDS)
        done = _try(
            faults, f"answers of {tokens:,} tokens (about {shape.seconds * 1.5 + 8:.0f} s)", path,
            shape, streams=2, seconds=min(10.0, max(3.0, shape.seconds / 2)),
            checksum=reference(engines.direct(), shape),
        )  # fmt: skip
        if done:
            values = done.values()
            cost = [f"{values[f'{hop} a chunk']:.0f}" for hop in ("front", "back")]
            memory = [f"{size / MIB:.1f}" for size in (done.front_bytes, done.back_bytes)]
            rows.append([f"{tokens:,}", " + ".join(cost), " + ".join(memory)])
    title = f"Answers of growing length, two streams of {_FAST:.0f} tokens/s; memory mid-stream:"
    return title, rows, faults


def _idle_connections(
    engines: Fleet, path: ServingPath, count: int
) -> tuple[str, list[list[str]], list[str]]:
    rows = [["idle connections", "frontend, MiB", "CPU of a core, idle", "TTFT p50 / p99, ms"]]
    faults: list[str] = []
    shape = Shape(tokens=16, rate=_RATE, first_token_seconds=_FIRST_TOKEN_SECONDS)
    checksum = reference(engines.direct(), shape)
    for number in (0, count):
        say(f"{number:,} idle connections")
        with _connections(path.ports[0], number) as found:
            memory = resident_bytes(path.front)
            before = cpu_seconds(path.front)
            time.sleep(3)
            share = (cpu_seconds(path.front) - before) / 3
            done = _try(
                faults, f"16 streams beside {len(found):,} idle connections", path, shape,
                streams=16, seconds=3, checksum=checksum,
            )  # fmt: skip
            if lost := sum(map(_is_closed, found)):
                faults.append(f"{lost} of {number:,} idle connections were closed")
        if done:
            values = done.values()
            times = f"{values['first p50']:.1f} / {values['first p99']:.1f}"
            rows.append([f"{number:,}", f"{memory / MIB:.1f}", f"{share:.2%}", times])
    return "Idle keep-alive connections to the frontend:", rows, faults


@contextlib.contextmanager
def _connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open connections, each with one finished request."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            one.sendall(_REQUEST)
            if not one.recv(65536).startswith(b"HTTP/1.1 200 "):
                raise SystemExit("the frontend does not answer /v1/models with 200")
            found.append(one)
        yield found


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    with contextlib.suppress(ConnectionError):
        try:
            while connection.recv(65536):  # the rest of the answer
                pass
        except BlockingIOError:
            return False
    return True


def _raise_file_limit() -> int:
    """Raise the limit of open files, which the processes inherit, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // KIB} KiB"
