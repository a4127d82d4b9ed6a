"""Run SGLang in each way of docs/sglang-families.toml, and record the families on its pages.

Run with `make sglang-runs`, or with the names of some runs; it writes docs/sglang-metrics.tsv and
docs/sglang-metrics.md. A run takes about half a minute on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse

HERE = Path(__file__).parent
_TESTS = HERE.parent / "tests"
sys.path[:0] = [str(HERE), str(_TESTS), str(_TESTS / "observability")]

import generate
import sglang_page
from sglang_page import RUNS, Run, Seen
from traffic import SMALL_POOL, Traffic

from dynamometer import tiny_model
from dynamometer.http.addresses import free_port
from processes import refusing_port
from stack import Stack, Worker, eventually, http

# SGLang logs the gauges of an idle rank after 30 s; requests log them at once.
_SETTLED_SECONDS = 3
# Rooms below this number are those of the engine's own requests.
_ROOM = 1 << 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"default: {', '.join(RUNS)}")
    wanted: list[str] = parser.parse_args().runs or list(RUNS)
    if unknown := set(wanted) - set(RUNS):
        parser.error(f"unknown run: {', '.join(sorted(unknown))}")
    groups = dict.fromkeys(RUNS[name].together or name for name in wanted)
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary, "tiny")
        tiny_model.create(model, engine_python=sys.executable)
        for number, group in enumerate(groups):
            runs = [run for run in RUNS.values() if group in (run.together, run.name)]
            print(f"running {', '.join(run.name for run in runs)}", flush=True)
            directory = Path(temporary, str(number))
            directory.mkdir()
            record(pages(runs, Stack(directory, model, directory / "discovery")))
    sglang_page.PAGE.write_text(sglang_page.page(), encoding="utf-8")
    print(f"wrote {sglang_page.DATA.name} and {sglang_page.PAGE.name}")


def pages(runs: Sequence[Run], stack: Stack) -> Mapping[str, str]:
    """Start the engines of `runs` behind one frontend, send requests, and return their pages."""
    port = free_port()
    with contextlib.ExitStack() as processes:
        _, url = processes.enter_context(stack.run_frontend())
        workers = {run.name: processes.enter_context(_worker(stack, run, port)) for run in runs}
        for worker in workers.values():
            worker.wait_until_ready()
        eventually(
            lambda: http(f"{url}/v1/models").json()["data"],
            within=30,
            what="the frontend serves the model",
        )
        _send(url, str(stack.model), workers)
        return {name: _settled(worker) for name, worker in workers.items()}


def _worker(stack: Stack, run: Run, port: int) -> contextlib.AbstractContextManager[Worker]:
    environment = dict(pair.split("=", 1) for pair in run.environment.split())
    flags = run.flags.format(port=port).split()
    common = ("--model", str(stack.model), "--enable-metrics", *SMALL_POOL)
    return stack.run_worker(*common, *flags, system_port=0, before=(), **environment)


def _send(url: str, model: str, workers: Mapping[str, Worker]) -> None:
    """Send what changes as many families as possible."""
    traffic = Traffic(url, model)
    traffic.answers()
    traffic.leave()
    if "follower" not in workers:  # two nodes on one machine are slow
        traffic.fill()
    if "decode" in workers:
        _fail_transfers(workers["prefill"], workers["decode"])
    if "options" in workers:
        _use_options(url, model, workers["options"])


def _fail_transfers(prefill: Worker, decode: Worker) -> None:
    """Send requests to one side only, which the time limits of the engines end."""
    words = prefill.engine.cmdline()
    bootstrap = int(words[words.index("--disaggregation-bootstrap-port") + 1])
    sent = ((prefill, bootstrap), (decode, bootstrap), (decode, refusing_port()))

    def one(number: int) -> int:
        worker, port = sent[number]
        address = {"bootstrap_host": "127.0.0.1", "bootstrap_port": port}
        body = {"text": "alone", "bootstrap_room": _ROOM + number, **address}
        return http(f"{worker.request_url}/generate", body).status

    with ThreadPoolExecutor(len(sent)) as pool:
        statuses = list(pool.map(one, range(len(sent))))
    assert all(status >= 500 for status in statuses), statuses


def _use_options(url: str, model: str, worker: Worker) -> None:
    """Send a request with a grammar, and ask the engine for its loads and for new weights."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 32}
    assert http(f"{url}/v1/chat/completions", {**chat, "response_format": form}).status == 200
    assert http(f"{worker.engine_url}/v1/loads").status == 200
    weights = {"model_path": model}
    assert http(f"{worker.engine_url}/update_weights_from_disk", weights).status == 200


def _settled(worker: Worker) -> str:
    """Return the worker's page when no family is added to it any more."""
    page = worker.page()
    while True:
        time.sleep(_SETTLED_SECONDS)
        later = worker.page()
        if set(_families(later)) == set(_families(page)):
            return later
        page = later


def _families(page: str) -> Mapping[str, generate.Documented]:
    return {
        generate.text_name(family): generate.documented(family)
        for family in parse(page)
        if family.samples and family.name.startswith("sglang:")
    }


def record(found: Mapping[str, str]) -> None:
    """Replace the columns of some runs in docs/sglang-metrics.tsv.

    Args:
        found: the page of each run.
    """
    types: dict[str, str] = {}
    labels: dict[str, dict[str, frozenset[str]]] = {}
    for name, seen in sglang_page.read().items():
        types[name] = seen.type
        labels[name] = {run: own for run, own in seen.labels.items() if run not in found}
    for run, page in found.items():
        for name, family in _families(page).items():
            assert types.setdefault(name, family.type) == family.type, name
            labels.setdefault(name, {})[run] = family.labels
    sglang_page.write({name: Seen(types[name], own) for name, own in labels.items() if own})


if __name__ == "__main__":
    main()
