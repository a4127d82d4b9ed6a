"""NVIDIA Dynamo's own frontend and worker on this machine, in their own namespaces.

NVIDIA Dynamo opens two sockets on all interfaces and starts many processes, and SGLang leaves
files in /dev/shm. The namespaces have a network with only `lo`, a private /dev/shm, and processes
that the kernel ends when the first one ends, also after SIGKILL.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from starting import say

from dynamometer.engines.sglang import CPU_FLAGS
from dynamometer.engines.sglang_cpu import SWITCH
from exporter import answers

MODEL = "tiny"
# In these namespaces, every port is free. The system port must be below 32768, because NVIDIA
# Dynamo reads a signed 16-bit number.
PORT, SYSTEM_PORT, ENGINE_PORT, NCCL_PORT = 8000, 8081, 30000, 30001
URL = f"http://127.0.0.1:{PORT}"
STARTS_WITHIN, ENDS_WITHIN = 150, 20  # seconds
_PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")
_HOSTS = ("DYN_SYSTEM_HOST", "DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST",
          "DYN_EVENT_PLANE_HOST")  # fmt: skip
_SET_UP = 'ip link set lo up && mount -t tmpfs tmpfs /dev/shm && exec "$@"'


@dataclass(frozen=True)
class Stack:
    """A running frontend and worker.

    Attributes:
        worker: the process that serves the page, and starts the engine's other processes.
        files: the directory of the worker's multiprocess files.
    """

    worker: psutil.Process
    files: Path


def run_in_namespaces(script: str, arguments: Sequence[str]) -> int:
    """Run a script with `--inside DIRECTORY` in new namespaces, and return its exit code."""
    for program in ("unshare", "setpriv", "ip"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: Debian's util-linux and iproute2 have it")
    unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="bench-dynamo-") as place:
        command = ["setpriv", "--pdeathsig", "KILL", *unshare, "sh", "-c", _SET_UP, "sh"]
        command += [sys.executable, script, "--inside", place, *arguments]
        process = subprocess.Popen(command)
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 130
        finally:
            with contextlib.suppress(psutil.Error):
                for first in psutil.Process(process.pid).children():
                    first.kill()  # then the kernel ends all other processes of the namespace
            process.wait()


@contextlib.contextmanager
def stack(place: Path, model: Path, worker: Sequence[str]) -> Iterator[Stack]:
    """Run a frontend and a worker, and wait until both are ready.

    Args:
        place: a directory for their files and logs.
        model: the model's directory.
        worker: the worker's command line, without flags.
    """
    temporary = place / "tmp"
    temporary.mkdir(parents=True)
    variables = dict.fromkeys(_HOSTS, "127.0.0.1") | {
        "DYN_FILE_KV": str(place / "discovery"), "TMPDIR": str(temporary),
    }  # fmt: skip
    frontend = [sys.executable, "-m", "dynamo.frontend", "--http-host", "127.0.0.1"]
    frontend += ["--http-port", str(PORT), *_PLANES]
    engine = [word for pair in CPU_FLAGS.items() for word in pair if word is not None]
    command = [*worker, *_PLANES, "--model-path", str(model), "--served-model-name", MODEL]
    command += ["--port", str(ENGINE_PORT), "--nccl-port", str(NCCL_PORT), *engine]
    command += ["--enable-metrics"]
    worker_variables = {SWITCH: "1", "DYN_SYSTEM_PORT": str(SYSTEM_PORT)}
    with (
        _started(frontend, place / "frontend.log", variables),
        _started(command, place / "worker.log", variables | worker_variables) as process,
    ):
        deadline = time.monotonic() + STARTS_WITHIN
        while not (answers(SYSTEM_PORT) and _is_served()):
            if process.poll() is not None or time.monotonic() > deadline:
                _fail(f"Dynamo's worker did not start (exit code {process.poll()})", place)
            time.sleep(0.2)
        yield Stack(psutil.Process(process.pid), _files(place))
        if process.poll() is not None:
            _fail("Dynamo's worker ended by itself", place)


def _fail(what: str, place: Path) -> None:
    logs = (place / name for name in ("frontend.log", "worker.log"))
    tails = "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
    sys.exit(f"{what}:\n{tails}")


def _is_served() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/v1/models")
        models = json.loads(connection.getresponse().read())["data"]
        return any(model["id"] == MODEL for model in models)
    return False


def _files(place: Path) -> Path:
    """Return the only directory in which the worker has created multiprocess files."""
    found = {file.parent for file in (place / "tmp").rglob("counter_*.db")}
    if len(found) != 1:
        sys.exit(f"{len(found)} directories in {place} have metrics files: expected one")
    return found.pop()


@contextlib.contextmanager
def _started(
    command: Sequence[str], log: Path, variables: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process while the context is open; end it and its children after that."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | variables,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        family = [psutil.Process(process.pid)] if process.poll() is None else []
        family += [child for first in family for child in first.children(recursive=True)]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_WITHIN)
        for left in family:
            with contextlib.suppress(psutil.Error):
                left.kill()
        psutil.wait_procs(family, ENDS_WITHIN)
        process.wait()


def end_other_processes() -> None:
    """End every other process of the namespace; this process is its first one."""
    left = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    titles = [process.name() for process in left if process.status() != psutil.STATUS_ZOMBIE]
    if titles:
        say(f"ended processes that were left over: {', '.join(titles)}")
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
