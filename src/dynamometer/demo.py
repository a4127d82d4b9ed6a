"""`dyno demo`: run a frontend and a worker on real requests, and show a part of their pages.

The demo creates a tiny model, starts a frontend and a worker with the real engine, and sends the
request of the README and a few streams. On a terminal, the processes run until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import aiohttp
import prometheus_client.parser
from prometheus_client import Metric

from dynamometer import arguments, names, settings, tiny_model
from dynamometer.engines.sglang_names import SGLANG_CATEGORIES
from dynamometer.errors import AddressError, DirectoryError, DynamometerError, EngineError
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
from dynamometer.observability.prometheus_api import PrometheusApi
from dynamometer.observability.questions import QUESTIONS, ask
from dynamometer.process import tasks
from dynamometer.process.locked_directories import locked
from dynamometer.variables import (
    DEFAULT_HTTP_PORT,
    DEFAULT_OPS_PORT,
    DEFAULT_SYSTEM_PORT,
    HTTP_METRICS_PATH,
    LOOPBACK,
)

_DESCRIPTION = """\
Try everything at once: create a tiny model, start a frontend and a worker with the real SGLang,
send a request and a few streams, and show a part of the /metrics pages. With --observe, a
Prometheus scrapes these pages, and answers three questions.
"""
QUESTION: Final = (
    "Explain why Roger Federer is considered one of the greatest tennis players of all time"
)
STREAMS, TOKENS = 8, 64
_START_TIMEOUT_SECONDS: Final = 180


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the demo's flags.

    Args:
        program: the name of the command in its help.
    """
    result = arguments.parser(program, _DESCRIPTION, "example:\n  dyno demo\n")
    result.add_argument(
        "--directory",
        type=Path,
        default=Path(".demo"),
        help="directory of the model and the logs (default: .demo)",
    )
    result.add_argument(
        "--observe",
        action="store_true",
        help="also start Prometheus, as dyno observe does, and print the answers to three queries",
    )
    arguments.add_engine_python(result, "SGLang")
    return result


def main(argv: Sequence[str], program: str = "dyno demo") -> int:
    """Run the demo, and return the exit code.

    Raises:
        DynamometerError: A process or a request failed; the message is for the user.
    """
    flags = parser(program).parse_args(list(argv))
    observed = flags.directory / "observe"
    with contextlib.ExitStack() as stack:
        if flags.observe:
            try:
                stack.enter_context(locked(observed, wait=False))
            except BlockingIOError:
                raise DirectoryError(
                    f"another dyno demo or dyno observe uses {observed}: end it first, or choose "
                    "another --directory"
                ) from None
        asyncio.run(_demo(flags.directory, flags.engine_python, observe=flags.observe))
    return 0


async def _demo(directory: Path, engine_python: str, *, observe: bool) -> None:
    ops_port = _choose_port(DEFAULT_OPS_PORT)
    prometheus = _prepare_prometheus(directory / "observe", ops_port) if observe else None
    model = directory / "tiny"
    if not (model / "config.json").exists():
        _say(f"creating a tiny model in {model}")
        tiny_model.create(model, engine_python=engine_python)
    frontend = f"http://{LOOPBACK}:{_choose_port(DEFAULT_HTTP_PORT)}"
    worker = f"http://{LOOPBACK}:{_choose_port(DEFAULT_SYSTEM_PORT)}"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "DYN_FILE_KV": str((directory / "discovery").resolve()),
        "DYN_HTTP_PORT": frontend.rsplit(":", 1)[1],
        "DYN_SYSTEM_PORT": worker.rsplit(":", 1)[1],
        "DYN_OPS_PORT": str(ops_port),
    }
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for name, flags in (
            ("frontend", ()),
            (
                "sglang",
                ("--model", str(model), "--enable-metrics", "--engine-python", engine_python),
            ),
        ):
            _say(f"$ {' '.join(('dyno', name, *flags))}   (log: {directory / name}.log)")
            process = await _start_command(directory / f"{name}.log", environment, name, *flags)
            stack.push_async_callback(_stop_command, process, name)
        ended = []
        if prometheus:
            _say(f"$ prometheus --config.file={directory}/observe/{PROMETHEUS_FILE} …")
            running = started(prometheus, immediate=asyncio.Event())
            ended.append(await stack.enter_async_context(running))
        steps = asyncio.create_task(
            _run_steps(session, frontend, worker, str(model), process, directory, prometheus)
        )
        stack.push_async_callback(tasks.end, steps)
        stopping = asyncio.create_task(stopped.wait())
        stack.push_async_callback(tasks.end, stopping)
        done, _ = await asyncio.wait((stopping, steps, *ended), return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            return
        for task in done:
            task.result()
        if _on_terminal():
            _say(f"all processes run until Ctrl-C; in another terminal: {_next_command(ops_port)}")
            await stopped.wait()
    _say(f"next, beside a frontend and workers that run: {_next_command(DEFAULT_OPS_PORT)}")
    print("  shows their pages in Prometheus and Grafana, with alerts and dashboards")


async def _run_steps(
    session: aiohttp.ClientSession,
    frontend: str,
    worker: str,
    model: str,
    worker_process: asyncio.subprocess.Process,
    directory: Path,
    prometheus: Program | None,
) -> None:
    await _wait_until_ready(session, frontend, worker, model, worker_process, directory)
    _say("the request of the README:")
    content = {
        "model": model,
        "max_completion_tokens": 100,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    async with session.post(f"{frontend}/v1/chat/completions", json=content) as answer:
        completion = await answer.json()
    if answer.status != 200:
        raise EngineError(f"the request was answered with {answer.status}: {completion}")
    text = completion["choices"][0]["message"]["content"]
    print(f"  {' '.join(text.split())[:200]!r} (random text from a random model)")
    usage = completion["usage"]
    print(f"  usage: {usage['prompt_tokens']} + {usage['completion_tokens']} tokens")
    await _request_streams(session, frontend, model)
    _say(f"a part of {worker}/metrics:")
    page = await _fetch_families(session, f"{worker}/metrics")
    _show_engine(page)
    _show_own("dynamo_component_*, the worker", page, names.name_prefix.COMPONENT)
    frontend_page = frontend + settings.read().frontend_paths[HTTP_METRICS_PATH]
    _say(f"a part of {frontend_page}:")
    page = await _fetch_families(session, frontend_page)
    _show_own("dynamo_frontend_*", page, names.name_prefix.FRONTEND)
    if prometheus:
        api = PrometheusApi(session, prometheus.url)
        _say("the same streams again, between two scrapes by Prometheus")
        await api.wait_for_scrapes(targets=2)
        await _request_streams(session, frontend, model)
        await api.wait_for_scrapes(targets=2)
        await _show_answers(api)
    if not _on_terminal():
        _say("not on a terminal: ending now; on a terminal, all processes run until Ctrl-C")
        return
    _say("try:")
    for address in (f"{frontend}/v1/models", frontend_page, f"{worker}/metrics"):
        print(f"  curl {address}")
    print(f"  curl {worker}/health")
    if prometheus:
        print(f"  {prometheus.url}, Prometheus in a browser")


async def _request_streams(session: aiohttp.ClientSession, frontend: str, model: str) -> None:
    _say(f"{STREAMS} streams of {TOKENS} tokens at once")
    start = time.perf_counter()
    await asyncio.gather(*(_request_stream(session, frontend, model, i) for i in range(STREAMS)))
    seconds = time.perf_counter() - start
    print(f"  {STREAMS * TOKENS} tokens in {seconds:.2f} s")


async def _show_answers(api: PrometheusApi) -> None:
    _say("three questions to Prometheus:")
    for question in QUESTIONS:
        print(f"  {question.title}\n    {question.promql}")
        for line in await ask(api, question):
            print(f"    = {line}")


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


def _say(text: str) -> None:
    bold, plain = ("\x1b[1m", "\x1b[0m") if _coloured() else ("", "")
    print(f"{bold}==> {text}{plain}", flush=True)


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _choose_port(preferred: int) -> int:
    """Return `preferred`, or any free port if the preferred one is in use."""
    try:
        addresses.listen(LOOPBACK, preferred, setting="").close()
    except AddressError:
        port = addresses.free_port()
        _say(f"port {preferred} is in use: using {port} instead")
        return port
    return preferred


async def _start_command(
    log: Path, environment: dict[str, str], command: str, *flags: str
) -> asyncio.subprocess.Process:
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dynamometer.cli", command, *flags),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # at Ctrl-C, the demo ends its processes in order
        )


async def _stop_command(process: asyncio.subprocess.Process, name: str) -> None:
    if process.returncode is None:
        _say(f"ending dyno {name}")
        process.terminate()
        await asyncio.sleep(0.3)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()  # the second signal skips draining
    await process.wait()


async def _wait_until_ready(
    session: aiohttp.ClientSession,
    frontend: str,
    worker: str,
    model: str,
    worker_process: asyncio.subprocess.Process,
    directory: Path,
) -> None:
    """Wait until the frontend serves the model, and report the progress."""
    start = reported = time.monotonic()
    while time.monotonic() - start < _START_TIMEOUT_SECONDS:
        if worker_process.returncode is not None:
            last = (directory / "sglang.log").read_text(errors="replace").strip().splitlines()
            raise EngineError(f"the worker ended: {last[-1] if last else 'its log is empty'}")
        try:
            async with session.get(f"{frontend}/v1/models") as answer:
                if any(card["id"] == model for card in (await answer.json())["data"]):
                    print(f"  ready after {time.monotonic() - start:.0f} s", flush=True)
                    return
        except aiohttp.ClientError:
            pass  # the frontend is still starting
        if time.monotonic() - reported > 3:
            reported = time.monotonic()
            print(f"  the engine is loading, {reported - start:.0f} s; {worker}/health returns 503")
            sys.stdout.flush()
        await asyncio.sleep(0.25)
    raise DynamometerError(
        f"the model was not ready after {_START_TIMEOUT_SECONDS} s: see {directory}/sglang.log"
    )


async def _request_stream(
    session: aiohttp.ClientSession, frontend: str, model: str, index: int
) -> None:
    content = {
        "model": model,
        "stream": True,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"{index}: {QUESTION}"}],
    }
    async with session.post(f"{frontend}/v1/chat/completions", json=content) as answer:
        answer.raise_for_status()
        async for _ in answer.content:
            pass


async def _fetch_families(session: aiohttp.ClientSession, url: str) -> list[Metric]:
    async with session.get(url) as answer:
        return list(prometheus_client.parser.text_string_to_metric_families(await answer.text()))


def _show_engine(page: list[Metric]) -> None:
    engine = [m for m in page if m.name.startswith(names.name_prefix.SGLANG)]
    print(
        f"  {len(engine)} sglang: families, {sum(len(m.samples) for m in engine)} series, such as"
    )
    for category, members in SGLANG_CATEGORIES.items():
        stems = {member.removesuffix("_total") for member in members}
        shown = [metric for metric in engine if metric.name in stems and metric.samples]
        if shown or category != "disaggregation":
            _show(category, shown)


def _show_own(title: str, page: list[Metric], prefix: str) -> None:
    _show(title, [metric for metric in page if metric.name.startswith(f"{prefix}_")])


def _show(title: str, metrics: list[Metric]) -> None:
    print(f"  {title}")
    for metric in metrics:
        name = metric.name + ("_total" if metric.type == "counter" else "")
        print(f"    {name:<52} {_value(metric)}")


def _value(metric: Metric) -> str:
    """Return the sum of a family's series; of a histogram, the mean and the number of values."""

    def total(suffix: str) -> float:
        return sum(s.value for s in metric.samples if s.name == metric.name + suffix)

    if metric.type == "histogram":
        count = total("_count")
        return f"mean {total('_sum') / count:.4g} of {count:.0f}" if count else "none yet"
    return f"{total('_total' if metric.type == 'counter' else ''):.6g}"
