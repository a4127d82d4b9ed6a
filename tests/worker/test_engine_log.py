"""The lines of an engine's log in `/health`."""

from __future__ import annotations

import pytest

from dynamometer.engines.sglang_log import PublicLines
from dynamometer.worker.engine_log import EngineLog


def engine_log() -> EngineLog:
    return EngineLog(PublicLines())


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("ServerArgs(api_key='s3', port=1)", "ServerArgs(api_key=***, port=1)"),
        ("ServerArgs(admin_api_key='s3 x', tp_size=1)", "ServerArgs(admin_api_key=***, tp_size=1)"),
        ('{"api_key": "s3", "a": 1}', '{"api_key": ***, "a": 1}'),
        ("python -m sglang --api-key s3 --port 1", "python -m sglang --api-key *** --port 1"),
        ("python -m sglang --admin-api-key=s3", "python -m sglang --admin-api-key=***"),
        ("HF_TOKEN=s3 AWS_SECRET_ACCESS_KEY=s3", "HF_TOKEN=*** AWS_SECRET_ACCESS_KEY=***"),
        ("Authorization: Bearer s3", "Authorization: ***"),
        ("authorization: Basic s3, accept: *", "authorization: ***, accept: *"),
        ("headers={'authorization': 'Bearer s3'}", "headers={'authorization': ***}"),
        ("with bearer s3, then", "with bearer ***, then"),
        ("http://user:s3@host/v1", "http://***@host/v1"),
        ("password=s3", "password=***"),
        ("passwd: s3", "passwd: ***"),
        (
            "['serve', '--api-key', 's3', '--port', '1']",
            "['serve', '--api-key', ***, '--port', '1']",
        ),
        ('{"token": "s3", "a": 1}', '{"token": ***, "a": 1}'),
        ("GET https://hub.example/m?token=s3&a=1", "GET https://hub.example/m?token=***"),
        ("Incorrect API key provided: s3.", "Incorrect API key provided: ***"),
        ("Cookie: session=s3; a=b", "Cookie: ***"),
        ("with hf_abcdefghijklmnopqrstuvwx in it", "with *** in it"),
        ("with sk-proj-abcdefghijklmnopqrst", "with ***"),
        ("{'hf_token': 's3'}", "{'hf_token': ***}"),
    ],
)
def test_keys_are_masked(line: str, shown: str) -> None:
    log = engine_log()
    log.add(line)
    assert log.lines == (shown,)


@pytest.mark.parametrize(
    "line",
    [
        "max_total_num_tokens=8192, #token: 43, token usage: 0.00",
        "Prefill batch, #new-seq: 1, #new-token: 43, #cached-token: 0, #pending-token: 0",
        "http://127.0.0.1:30000/v1 answers; see a@b.example",
        "Loading safetensors checkpoint shards: 100%",
        "tokenizer_path='./tiny', key_cache=True",
        "#token: 10, token usage: 0.5, sk-learn, hf_config",
        "a key: 3, cookies: 2",
    ],
)
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert engine_log().clean(line) == line


def test_only_the_last_ten_lines_are_kept() -> None:
    log = engine_log()
    for number in range(30):
        log.add(f"line {number}")
    assert log.lines == tuple(f"line {number}" for number in range(20, 30))


def test_lines_with_the_contents_of_a_request_do_not_take_a_place() -> None:
    log = engine_log()
    log.add("[2026-01-31 12:00:00] ready")
    for _ in range(20):
        log.add("[2026-01-31 12:00:00] Receive: obj=GenerateReqInput(text='hi')")
    assert log.lines == ("[2026-01-31 12:00:00] ready",)


@pytest.mark.parametrize("character", ["x", "é", "漢", "😀", "\x00", "\ud800"])
def test_a_line_is_limited_in_bytes(character: str) -> None:
    shown = engine_log().clean(character * 5000)
    assert len(shown.encode()) <= 400


def test_a_key_at_the_end_of_the_shown_part_is_masked() -> None:
    for padding in range(370, 400):
        shown = engine_log().clean("." * padding + " api_key=s3" + "." * 100)
        assert "s3" not in shown
