"""SGLang's log without the contents of requests."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from dynamometer.engines.sglang import exit_reason
from dynamometer.engines.sglang_log import PublicLines

STAMP = "[2026-01-31 12:00:00 TP0] "
SECRET = "my secret"


def public(*lines: str) -> Sequence[str]:
    shown = map(PublicLines(), lines)
    return [line for line in shown if line is not None]


@pytest.mark.parametrize(
    "line",
    [
        f"Receive: obj=GenerateReqInput(rid='1', text='{SECRET}', sampling_params={{}})",
        f"Receive OpenAI: obj={{'model': 'm', 'messages': [{{'content': '{SECRET}'}}]}}",
        f"Finish: obj=GenerateReqInput(rid='1'), out={{'text': '{SECRET}', 'meta_info': {{}}}}",
        f'{{"timestamp": "t", "event": "request.received", "rid": "1", "obj": "{SECRET}"}}',
        f"Req(rid=1, input_ids=[1, 2], output_ids=[]) {SECRET}",
        f"Unparsed required tool call output: '{SECRET}'",
        f"recv_obj={SECRET}",
        f"bad request: prompt = {SECRET}",
        f"  Input should be a valid string [type=string_type, input_value='{SECRET}']",
        f'{{"prompt": "{SECRET}"}}',
    ],
)
@pytest.mark.parametrize("stamp", [STAMP, ""])
def test_contents_of_requests_are_omitted(line: str, stamp: str) -> None:
    after = f"{STAMP}Decode batch. #running-req: 1"
    assert public(stamp + line, f"{SECRET}, second line", "  third", after) == [after]


@pytest.mark.parametrize(
    "line",
    [
        f"{STAMP}Decode batch. #running-req: 1, #token: 43, gen throughput (token/s): 11.5",
        f"{STAMP}max_total_num_tokens=8192, chunked_prefill_size=-1, context_len=2048",
        "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00]",
        f"{STAMP}Load weight end. type=LlamaForCausalLM, avail mem=20.1 GB",
        'INFO:     127.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
        f"{STAMP}Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)",
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_lines_of_the_engine_are_shown(line: str) -> None:
    assert public(line) == [line]


def test_a_long_line_is_truncated_and_the_rest_of_its_entry_is_omitted() -> None:
    line = f"{STAMP}{'x' * 3000}"
    shown = public(f"{line} text='{SECRET}'", SECRET, "RuntimeError: of it", f"{STAMP}next")
    assert shown == [
        line[:2000],
        "RuntimeError: (its message is omitted: it may have the contents of a request)",
        f"{STAMP}next",
    ]


@pytest.mark.parametrize("unit", ["x", " ", "text ", '"A ', "A.", "A", "|", "\u6f22"])
def test_the_reason_of_an_end_is_found_at_once_whatever_the_log(unit: str) -> None:
    log = [(unit * 80_000)[:80_000]] * 399 + [f"RuntimeError: {unit * 80_000}"]
    started = time.perf_counter()
    reason = exit_reason(log, 1)
    assert time.perf_counter() - started < 0.2
    assert len(reason) < 2100


@pytest.mark.parametrize("method", ["GET", "M-SEARCH"])
def test_the_query_of_a_request_is_omitted_whatever_its_method(method: str) -> None:
    line = f'INFO:     127.0.0.1:4 - "{method} /generate?q={SECRET[:2]} HTTP/1.1" 404 Not Found'
    assert public(line) == [f'INFO:     127.0.0.1:4 - "{method} /generate HTTP/1.1" 404 Not Found']


def test_the_query_of_a_request_is_omitted() -> None:
    line = f'INFO:     127.0.0.1:4 - "GET /generate?q={SECRET[:2]}&key=s HTTP/1.1" 404 Not Found'
    assert public(line) == ['INFO:     127.0.0.1:4 - "GET /generate HTTP/1.1" 404 Not Found']


CRASH = (
    f"{STAMP}Scheduler hit an exception: Traceback (most recent call last):",
    '  File "scheduler.py", line 7, in run',
    "    forward(input_ids=batch.input_ids, text=req.text)",
)


def test_source_code_in_a_traceback_is_shown() -> None:
    lines = (*CRASH, "RuntimeError: out of memory")
    assert public(*lines) == list(lines)
    assert exit_reason(lines, 1) == "RuntimeError: out of memory (exit code 1)"


def test_of_an_exception_with_contents_only_the_kind_is_shown() -> None:
    lines = (*CRASH, f"ValueError: not valid: text='{SECRET}", f"{SECRET} goes on'")
    assert SECRET not in str(public(*lines))
    reason = exit_reason(lines, 1)
    assert reason.startswith("ValueError: (its message is omitted")
    assert SECRET not in reason


GROUP = (
    f"{STAMP}Exception in ASGI application",
    "  + Exception Group Traceback (most recent call last):",
    '  |   File "server.py", line 3, in serve',
    "  |     raise_all(text)",
    "  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)",
    "  +-+---------------- 1 ----------------",
    "    | Traceback (most recent call last):",
    '    |   File "tokenizer.py", line 7, in run',
    f"    | ValueError: not valid: text='{SECRET}'",
    f"    | {SECRET}, second line",
    "    +---------------- 2 ----------------",
    "    | Traceback (most recent call last):",
    '    |   File "tokenizer.py", line 9, in run',
    "    | RuntimeError: out of memory",
    "    +------------------------------------",
)


def test_a_group_of_exceptions_is_shown_without_contents() -> None:
    shown = public(*GROUP)
    assert SECRET not in str(shown)
    assert shown[:4] == list(GROUP[:4])
    assert shown[-1] == "    | RuntimeError: out of memory"
    assert exit_reason(GROUP, 1) == "RuntimeError: out of memory (exit code 1)"


def test_further_lines_of_an_exception_are_omitted() -> None:
    after = f"{STAMP}Decode batch"
    for exception in ("ValueError: the prompt is", "mod.Failed: the prompt is", "AssertionError"):
        lines = (*CRASH, exception, SECRET, f"  {SECRET}", f"KeyError: {SECRET}", after)
        shown = public(*lines)
        assert SECRET not in str(shown)
        assert shown[-1] == after
        assert SECRET not in exit_reason(lines, 1)


def test_lines_between_exceptions_and_of_a_native_crash_are_shown() -> None:
    lines = [
        *(*CRASH, "KeyError: 3"),
        "During handling of the above exception, another exception occurred:",
        *("Traceback (most recent call last):", '  File "a.py", line 1', "RuntimeError: second"),
        "Fatal Python error: Segmentation fault",
        "[rank0]:[W1127 12:00:00.1 socket.cpp:752] the connection broke",
    ]
    assert public(*lines) == lines


def test_the_reason_of_an_end_has_no_contents_of_requests() -> None:
    received = f"{STAMP}Receive: obj=GenerateReqInput(text='{SECRET}')"
    assert exit_reason([f"{STAMP}loading", received], 3) == "loading (exit code 3)"
