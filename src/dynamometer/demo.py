"""`dyno demo`: the main job on real input, and what the page says afterwards.

A tiny model made locally, a frontend, a worker with the real engine, the request of the
README and a few streams. On a terminal it stays up until Ctrl-C; without one it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
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
from dynamometer.errors import AddressError, DynamometerError, EngineError
from dynamometer.http import addresses
from dynamometer.process import tasks

_DESCRIPTION = """\
Try everything at once: make a tiny model, start a frontend and a worker around the real
SGLang, send a request and a few streams, and show what /metrics says.
"""
QUESTION: Final = (
    "Explain why Roger Federer is considered one of the greatest tennis players of all time"
)
STREAMS, TOKENS = 8, 64
_START_SECONDS: Final = 180


def parser(program: str) -> argparse.ArgumentParser:
    """The demo's flags.

    Args:
        program: how the command was called, for its help.
    """
    result = arguments.parser(program, _DESCRIPTION, "example:\n  dyno demo\n")
    result.add_argument(
        "--directory",
        type=Path,
        default=Path(".demo"),
        help="where the model and the logs are kept (default: .demo)",
    )
    arguments.add_engine_python(result, "SGLang")
    return result


def main(argv: Sequence[str], program: str = "dyno demo") -> int:
    """Run the demo; the exit code.

    Raises:
        DynamometerError: with the message for the user.
    """
    own = parser(program).parse_args(list(argv))
    asyncio.run(_demo(own.directory, own.engine_python))
    return 0


async def _demo(directory: Path, engine_python: str) -> None:
    model = directory / "tiny"
    if not (model / "config.json").exists():
        _say(f"making a tiny model in {model}")
        tiny_model.make(model, engine_python=engine_python)
    frontend = f"http://127.0.0.1:{_port(settings.DEFAULT_HTTP_PORT)}"
    worker = f"http://127.0.0.1:{_port(settings.DEFAULT_SYSTEM_PORT)}"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "DYN_FILE_KV": str((directory / "discovery").resolve()),
        "DYN_HTTP_PORT": frontend.rsplit(":", 1)[1],
        "DYN_SYSTEM_PORT": worker.rsplit(":", 1)[1],
    }
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
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
            process = await _start(directory / f"{name}.log", environment, name, *flags)
            stack.push_async_callback(_end, process, name)
        steps = asyncio.create_task(
            _steps(session, frontend, worker, str(model), process, directory)
        )
        await tasks.first_of(asked, steps)
        if not steps.done():
            await tasks.end(steps)
            return
        steps.result()
        if _on_terminal():
            _say("everything stays up until Ctrl-C")
            await asked.wait()


async def _steps(
    session: aiohttp.ClientSession,
    frontend: str,
    worker: str,
    model: str,
    process: asyncio.subprocess.Process,
    directory: Path,
) -> None:
    await _ready(session, frontend, worker, model, process, directory)
    _say("the request of the README:")
    content = {
        "model": model,
        "max_completion_tokens": 100,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    async with session.post(f"{frontend}/v1/chat/completions", json=content) as answer:
        said = await answer.json()
    if answer.status != 200:
        raise EngineError(f"the request was answered with {answer.status}: {said}")
    text = said["choices"][0]["message"]["content"]
    print(f"  {' '.join(text.split())[:200]!r} (a random model talks nonsense)")
    print(
        f"  usage: {said['usage']['prompt_tokens']} + {said['usage']['completion_tokens']} tokens"
    )
    _say(f"{STREAMS} streams of {TOKENS} tokens at once")
    begun = time.perf_counter()
    await asyncio.gather(*(_stream(session, frontend, model, i) for i in range(STREAMS)))
    seconds = time.perf_counter() - begun
    print(f"  {STREAMS * TOKENS} tokens in {seconds:.2f} s")
    _say(f"what {worker}/metrics says")
    page = await _families(session, f"{worker}/metrics")
    _show_engine(page)
    _show_own("dynamo_component_*, of the worker", page, names.name_prefix.COMPONENT)
    _say(f"what {frontend}/metrics says")
    page = await _families(session, f"{frontend}/metrics")
    _show_own("dynamo_frontend_*", page, names.name_prefix.FRONTEND)
    if not _on_terminal():
        _say("no terminal: ending; on one, this stays up until Ctrl-C")
        return
    _say("to look at:")
    for address in (f"{frontend}/v1/models", f"{frontend}/metrics", f"{worker}/metrics"):
        print(f"  curl {address}")
    print(f"  curl {worker}/health")


def _say(text: str) -> None:
    bold, plain = ("\x1b[1m", "\x1b[0m") if _coloured() else ("", "")
    print(f"{bold}==> {text}{plain}", flush=True)


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _port(wanted: int) -> int:
    """`wanted`, or any free port where it is taken."""
    try:
        addresses.listen("127.0.0.1", wanted, setting="").close()
    except AddressError:
        port = addresses.free_port()
        _say(f"port {wanted} is taken: using {port} instead")
        return port
    return wanted


async def _start(
    log: Path, environment: dict[str, str], command: str, *flags: str
) -> asyncio.subprocess.Process:
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dynamometer.cli", command, *flags),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
        )


async def _end(process: asyncio.subprocess.Process, name: str) -> None:
    if process.returncode is None:
        _say(f"ending dyno {name}")
        process.terminate()
        await asyncio.sleep(0.3)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()  # nothing here is worth the time that SGLang takes to end
    await process.wait()


async def _ready(
    session: aiohttp.ClientSession,
    frontend: str,
    worker: str,
    model: str,
    process: asyncio.subprocess.Process,
    directory: Path,
) -> None:
    """Wait until the frontend serves the model, and say what for."""
    begun = said = time.monotonic()
    while time.monotonic() - begun < _START_SECONDS:
        if process.returncode is not None:
            last = (directory / "sglang.log").read_text(errors="replace").strip().splitlines()
            raise EngineError(f"the worker ended: {last[-1] if last else 'it said nothing'}")
        try:
            async with session.get(f"{frontend}/v1/models") as answer:
                if any(card["id"] == model for card in (await answer.json())["data"]):
                    print(f"  ready after {time.monotonic() - begun:.0f} s", flush=True)
                    return
        except aiohttp.ClientError:
            pass  # the frontend is still starting
        if time.monotonic() - said > 3:
            said = time.monotonic()
            print(f"  the engine is loading, {said - begun:.0f} s; {worker}/health says 503")
            sys.stdout.flush()
        await asyncio.sleep(0.25)
    raise DynamometerError(f"no model after {_START_SECONDS} s: see {directory}/sglang.log")


async def _stream(session: aiohttp.ClientSession, frontend: str, model: str, index: int) -> None:
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


async def _families(session: aiohttp.ClientSession, url: str) -> list[Metric]:
    async with session.get(url) as answer:
        return list(prometheus_client.parser.text_string_to_metric_families(await answer.text()))


def _show_engine(page: list[Metric]) -> None:
    engine = [m for m in page if m.name.startswith(names.name_prefix.SGLANG)]
    print(
        f"  {len(engine)} sglang: families, {sum(len(m.samples) for m in engine)} series; of them"
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
    """One figure for a family: a sum over its series, a mean for a histogram."""

    def total(suffix: str) -> float:
        return sum(s.value for s in metric.samples if s.name == metric.name + suffix)

    if metric.type == "histogram":
        count = total("_count")
        return f"mean {total('_sum') / count:.4g} of {count:.0f}" if count else "none yet"
    return f"{total('_total' if metric.type == 'counter' else ''):.6g}"
