"""The processes of the demo: a frontend, one worker or one for each phase, and Prometheus.

On a terminal, the processes run until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from dynamometer import tiny_model
from dynamometer.demo import steps
from dynamometer.demo.output import on_terminal, say, shell_command
from dynamometer.demo.steps import Deployment, Worker
from dynamometer.errors import AddressError
from dynamometer.http import addresses
from dynamometer.observability import configuration, written_files
from dynamometer.observability.configuration import (
    PROMETHEUS_DATA,
    PROMETHEUS_FILE,
    Targets,
)
from dynamometer.observability.programs import (
    DEFAULT_PROMETHEUS_PORT,
    Program,
    find_prometheus,
    started,
)
from dynamometer.process import tasks
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL
from dynamometer.variables import (
    DEFAULT_HTTP_PORT,
    DEFAULT_OPS_PORT,
    DEFAULT_SYSTEM_PORT,
    LOOPBACK,
)


async def run(directory: Path, engine_python: str, *, disaggregated: bool, observe: bool) -> None:
    """Run the demo: start the processes, show their work, and end them.

    Args:
        directory: the directory of the model and the logs.
        engine_python: the interpreter in which SGLang is installed.
        disaggregated: start a worker for each phase, instead of one worker.
        observe: start Prometheus, too.

    Raises:
        DynamometerError: A process or a request failed; the message is for the user.
    """
    ops_port = _choose_port(DEFAULT_OPS_PORT)
    prometheus = _prepare_prometheus(directory / "observe", ops_port) if observe else None
    model = directory / "tiny"
    if not (model / "config.json").exists():
        say(f"creating a tiny model in {model}")
        tiny_model.create(model, engine_python=engine_python)
    http_port = _choose_port(DEFAULT_HTTP_PORT)
    discovery = {"DYN_FILE_KV": str((directory / "discovery").resolve())}
    ports = {"DYN_HTTP_PORT": str(http_port), "DYN_OPS_PORT": str(ops_port)}
    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        log = directory / "frontend.log"
        await _start(stack, "the frontend", log, discovery | ports, "frontend")
        flags = ("--model", str(model), "--enable-metrics", "--engine-python", engine_python)
        modes = (PREFILL, DECODE) if disaggregated else (AGGREGATED,)
        workers = [
            await _start_worker(
                stack, directory, discovery, mode, DEFAULT_SYSTEM_PORT + number, flags
            )
            for number, mode in enumerate(modes)
        ]
        ended = []
        if prometheus:
            say(f"$ prometheus --config.file={directory}/observe/{PROMETHEUS_FILE} …")
            running = started(prometheus, immediate=asyncio.Event())
            ended.append(await stack.enter_async_context(running))
        deployment = Deployment(
            session=session,
            model=str(model),
            frontend=f"http://{LOOPBACK}:{http_port}",
            workers=workers,
            prometheus=prometheus.url if prometheus else None,
        )
        shown = asyncio.create_task(steps.run(deployment))
        stack.push_async_callback(tasks.end, shown)
        stopping = asyncio.create_task(stopped.wait())
        stack.push_async_callback(tasks.end, stopping)
        done, _ = await asyncio.wait((stopping, shown, *ended), return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            return
        for task in done:
            task.result()
        if on_terminal():
            say(f"all processes run until Ctrl-C; in another terminal: {_next_command(ops_port)}")
            await stopped.wait()
    say(f"next, beside a frontend and workers that run: {_next_command(DEFAULT_OPS_PORT)}")
    print("  shows their pages in Prometheus and Grafana, with alerts and dashboards")


def _prepare_prometheus(directory: Path, ops_port: int) -> Program:
    """Write the files of Prometheus, and remove the data of an earlier demo.

    Raises:
        ObserveError: Prometheus is not installed.
        DirectoryError: The directory has a file of another origin; see `written_files.write`.
    """
    place = directory.absolute()
    targets = Targets(sd_url=f"http://{LOOPBACK}:{ops_port}/sd", interval="1s")
    program = find_prometheus(place, _choose_port(DEFAULT_PROMETHEUS_PORT))
    written_files.write(place, configuration.files(place, targets, prometheus_url=program.url))
    shutil.rmtree(place / PROMETHEUS_DATA, ignore_errors=True)
    return program


def _next_command(ops_port: int) -> str:
    """Return the command that a user runs next, as this shell finds it."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "dyno" else "dyno"
    listed = f" --sd-url http://{LOOPBACK}:{ops_port}/sd" if ops_port != DEFAULT_OPS_PORT else ""
    return f"{program} observe{listed}"


def _choose_port(preferred: int) -> int:
    """Return `preferred`, or any free port if the preferred one is in use."""
    try:
        addresses.listen(LOOPBACK, preferred, setting="").close()
    except AddressError:
        port = addresses.free_port()
        say(f"port {preferred} is in use: using {port} instead")
        return port
    return preferred


async def _start_worker(
    stack: AsyncExitStack,
    directory: Path,
    discovery: Mapping[str, str],
    mode: str,
    preferred_port: int,
    flags: Sequence[str],
) -> Worker:
    """Start a worker for all of the work or for one phase; it ends with `stack`."""
    title, log = "the worker", directory / "sglang.log"
    if mode != AGGREGATED:
        title, log = f"the {mode} worker", directory / f"{mode}.log"
        flags = (*flags, "--disaggregation-mode", mode)
    port = _choose_port(preferred_port)
    variables = {**discovery, "DYN_SYSTEM_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    process = await _start(stack, title, log, variables, "sglang", *flags)
    url = f"http://{LOOPBACK}:{port}"
    return Worker(title=title, mode=mode, url=url, process=process, log=log)


async def _start(
    stack: AsyncExitStack,
    title: str,
    log: Path,
    variables: Mapping[str, str],
    command: str,
    *flags: str,
) -> asyncio.subprocess.Process:
    """Start a command of `dyno`, which ends with `stack`."""
    say(f"$ {shell_command(variables, ('dyno', command, *flags))}   (log: {log})")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dynamometer.cli", command, *flags),
            env={**os.environ, **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # at Ctrl-C, the demo ends its processes in order
        )
    stack.push_async_callback(_stop, process, title)
    return process


async def _stop(process: asyncio.subprocess.Process, title: str) -> None:
    if process.returncode is None:
        say(f"ending {title}")
        process.terminate()
        await asyncio.sleep(0.3)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()  # the second signal skips draining
    await process.wait()
