"""The steps of the demo: the requests to the frontend, and the pages after them."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import prometheus_client.parser
from prometheus_client import Metric

from dynamometer import names, settings
from dynamometer.demo.output import on_terminal, say, show_engine, show_own, show_series
from dynamometer.errors import DynamometerError, EngineError
from dynamometer.names import build, frontend_resilience, labels
from dynamometer.observability.prometheus_api import PrometheusApi
from dynamometer.observability.questions import QUESTIONS, ask
from dynamometer.variables import HTTP_METRICS_PATH, HTTP_READY_PATH

QUESTION: Final = (
    "Explain why Roger Federer is considered one of the greatest tennis players of all time"
)
STREAMS, TOKENS = 8, 64
_START_TIMEOUT_SECONDS: Final = 180


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker of the demo.

    Attributes:
        title: its name for the user.
        mode: the phases of a request that it computes, as in its record.
        url: the base URL of its pages.
        process: its process.
        log: the file with its log.
    """

    title: str
    mode: str
    url: str
    process: asyncio.subprocess.Process
    log: Path


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The running processes, and a client for them.

    Attributes:
        session: the client.
        model: the name of the model.
        frontend: the base URL of the frontend.
        workers: one worker, or the prefill worker and the decode worker.
        prometheus: the URL of Prometheus; None without one.
    """

    session: aiohttp.ClientSession
    model: str
    frontend: str
    workers: Sequence[Worker]
    prometheus: str | None

    @property
    def metrics_url(self) -> str:
        """The URL of the frontend's page."""
        return self.frontend + settings.read().frontend_paths[HTTP_METRICS_PATH]

    @property
    def logs(self) -> str:
        """The logs of the workers, for a message."""
        return " and ".join(str(worker.log) for worker in self.workers)


async def run(demo: Deployment) -> None:
    """Wait for the workers, send the requests, and show a part of each page.

    Raises:
        DynamometerError: A process or a request failed; the message is for the user.
    """
    await _wait_until_ready(demo)
    try:
        await _request_answer(demo)
        await _request_streams(demo)
        await _show_pages(demo)
    except aiohttp.ClientError as error:
        raise EngineError(f"a request failed: {error}; see {demo.logs}") from error
    if demo.prometheus:
        await _show_prometheus(demo, demo.prometheus)
    if not on_terminal():
        say("not on a terminal: ending now; on a terminal, all processes run until Ctrl-C")
        return
    say("try:")
    pages = [f"{demo.frontend}/v1/models", demo.metrics_url]
    for worker in demo.workers:
        pages += [f"{worker.url}/metrics", f"{worker.url}/health"]
    for address in pages:
        print(f"  curl {address}")
    print(f"  {chat_command(demo.frontend, demo.model)}")
    if demo.prometheus:
        print(f"  {demo.prometheus}, Prometheus in a browser")


def chat_command(frontend: str, model: str) -> str:
    """Return a shell command that sends a chat request to a frontend."""
    messages = [{"role": "user", "content": "hi"}]
    content = json.dumps({"model": model, "max_tokens": 20, "messages": messages})
    url = f"{frontend}/v1/chat/completions"
    return shlex.join(("curl", url, "-H", "Content-Type: application/json", "-d", content))


async def _show_pages(demo: Deployment) -> None:
    for worker in demo.workers:
        say(f"a part of {worker.url}/metrics, {worker.title}:")
        page = await _fetch_families(demo.session, f"{worker.url}/metrics")
        show_series(page, build.WORKER_INFO, by=[labels.MODE])
        show_engine(page, worker.mode)
        show_own("dynamo_component_*, the worker", page, names.name_prefix.COMPONENT)
    say(f"a part of {demo.metrics_url}:")
    page = await _fetch_families(demo.session, demo.metrics_url)
    show_series(page, frontend_resilience.WORKERS, by=[labels.MODE, labels.STATE])
    show_own("dynamo_frontend_*", page, names.name_prefix.FRONTEND)


async def _wait_until_ready(demo: Deployment) -> None:
    """Wait until the frontend serves the model, and report the progress."""
    path = settings.read().frontend_paths[HTTP_READY_PATH]
    start = reported = time.monotonic()
    while time.monotonic() - start < _START_TIMEOUT_SECONDS:
        for worker in demo.workers:
            if worker.process.returncode is not None:
                last = worker.log.read_text(errors="replace").strip().splitlines()
                raise EngineError(
                    f"{worker.title} ended: {last[-1] if last else 'its log is empty'}"
                )
        reason = "the frontend is starting"
        try:
            async with demo.session.get(
                demo.frontend + path, params={"model": demo.model}
            ) as answer:
                if answer.status == 200:
                    print(f"  ready after {time.monotonic() - start:.0f} s", flush=True)
                    return
                reason = f"{path} returns 503: {(await answer.json())['reason']}"
        except aiohttp.ClientError:
            pass
        if time.monotonic() - reported > 3:
            reported = time.monotonic()
            print(f"  after {reported - start:.0f} s: {reason}", flush=True)
        await asyncio.sleep(0.25)
    raise DynamometerError(
        f"the model was not ready after {_START_TIMEOUT_SECONDS} s: see {demo.logs}"
    )


async def _request_answer(demo: Deployment) -> None:
    say("the request of the README:")
    content = {
        "model": demo.model,
        "max_completion_tokens": 100,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    url = f"{demo.frontend}/v1/chat/completions"
    async with demo.session.post(url, json=content) as answer:
        completion = await answer.json()
    if answer.status != 200:
        raise EngineError(f"the request was answered with {answer.status}: {completion}")
    text = completion["choices"][0]["message"]["content"]
    print(f"  {' '.join(text.split())[:200]!r} (random text from a random model)")
    usage = completion["usage"]
    print(f"  usage: {usage['prompt_tokens']} + {usage['completion_tokens']} tokens")


async def _request_streams(demo: Deployment) -> None:
    say(f"{STREAMS} streams of {TOKENS} tokens at once")
    start = time.perf_counter()
    await asyncio.gather(*(_request_stream(demo, index) for index in range(STREAMS)))
    seconds = time.perf_counter() - start
    print(f"  {STREAMS * TOKENS} tokens in {seconds:.2f} s")


async def _request_stream(demo: Deployment, index: int) -> None:
    content = {
        "model": demo.model,
        "stream": True,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"{index}: {QUESTION}"}],
    }
    async with demo.session.post(f"{demo.frontend}/v1/chat/completions", json=content) as answer:
        answer.raise_for_status()
        async for _ in answer.content:
            pass


async def _show_prometheus(demo: Deployment, url: str) -> None:
    api = PrometheusApi(demo.session, url)
    targets = 1 + len(demo.workers)
    say("the same streams again, between two scrapes by Prometheus")
    await api.wait_for_scrapes(targets=targets)
    await _request_streams(demo)
    await api.wait_for_scrapes(targets=targets)
    say("three questions to Prometheus:")
    for question in QUESTIONS:
        print(f"  {question.title}\n    {question.promql}")
        for line in await ask(api, question):
            print(f"    = {line}")


async def _fetch_families(session: aiohttp.ClientSession, url: str) -> list[Metric]:
    async with session.get(url) as answer:
        return list(prometheus_client.parser.text_string_to_metric_families(await answer.text()))
