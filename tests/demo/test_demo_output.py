"""The texts that the demo prints: commands, and parts of pages."""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import prometheus_client.parser
import pytest
from prometheus_client import Metric

from dynamometer.demo.output import shell_command, show_engine, show_series
from dynamometer.demo.steps import chat_command
from dynamometer.engines.sglang_names import SGLANG_CATEGORIES
from dynamometer.runtime.record import AGGREGATED, DECODE, PREFILL

QUEUES = [name for name in SGLANG_CATEGORIES["disaggregation"] if name.endswith("_queue_reqs")]


def families(text: str) -> list[Metric]:
    return list(prometheus_client.parser.text_string_to_metric_families(text))


@pytest.mark.parametrize(
    ("mode", "prefixes"),
    [
        (AGGREGATED, set()),
        (PREFILL, {"sglang:num_prefill_"}),
        (DECODE, {"sglang:num_decode_"}),
    ],
)
def test_a_side_shows_its_own_queues_only(
    mode: str, prefixes: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = families("".join(f"# TYPE {name} gauge\n{name} 0\n" for name in QUEUES))
    show_engine(page, mode)
    printed = capsys.readouterr().out
    shown = {name for name in QUEUES if name in printed}
    assert shown == {name for name in QUEUES if name.startswith(tuple(prefixes))}


def test_series_are_shown_with_the_requested_labels(capsys: pytest.CaptureFixture[str]) -> None:
    name = "dynamometer_frontend_workers"
    page = families(
        f"# TYPE {name} gauge\n"
        f'{name}{{model="m",mode="prefill",state="starting"}} 0\n'
        f'{name}{{model="m",mode="prefill",state="ready"}} 1\n'
        f'{name}{{model="m",mode="decode",state="ready"}} 2\n'
    )
    show_series(page, name, by=["mode", "state"])
    assert capsys.readouterr().out.splitlines() == [
        f'  {name}{{mode="prefill",state="ready"}} 1',
        f'  {name}{{mode="decode",state="ready"}} 2',
    ]


def test_a_printed_command_runs_with_its_variables() -> None:
    directory = "/a directory/it's here"
    printed = shell_command(
        {"DYN_FILE_KV": directory}, ["sh", "-c", 'echo "$DYN_FILE_KV" "$0"', "a b"]
    )
    done = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, env=os.environ)
    assert done.stdout == f"{directory} a b\n"


def test_the_printed_chat_request_is_for_the_model() -> None:
    words = shlex.split(chat_command("http://127.0.0.1:8000", "it's/tiny"))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's/tiny"
