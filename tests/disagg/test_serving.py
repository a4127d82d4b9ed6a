"""Requests that two engines answer together: the answers, and their place on the pages."""

from __future__ import annotations

from collections.abc import Mapping

import openai
import pytest

from disagg.pair import CHAT, MODEL, REQUESTS, Pair, outcome, send
from page_values import value
from stack import Answer, eventually, http

pytestmark = pytest.mark.engine


def engine_requests(pair: Pair) -> list[float]:
    return [value(worker.page(), "sglang:num_requests_total") for worker in pair.workers]


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_one_engine(
    pair: Pair, aggregated_answers: Mapping[str, Answer], name: str
) -> None:
    found = send(pair.url, REQUESTS[name])
    assert outcome(found) == outcome(aggregated_answers[name])
    assert found.headers["Content-Type"] == aggregated_answers[name].headers["Content-Type"]


def test_openais_client_reads_answers_and_streams(pair: Pair) -> None:
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=7
        )
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 7
        chunks = list(
            client.completions.create(
                model=MODEL,
                prompt="hi",
                max_tokens=7,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
        )
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [7]
        assert [model.id for model in client.models.list()] == [MODEL]


def test_a_request_is_counted_once_at_the_frontend_and_once_on_each_side(pair: Pair) -> None:
    counted = {
        "dynamo_frontend_requests_total": 1.0,
        "dynamo_frontend_input_sequence_tokens_sum": 0.0,
        "dynamo_frontend_output_sequence_tokens_sum": 8.0,
        "dynamo_frontend_time_to_first_token_seconds_count": 1.0,
    }
    frontend = f"{pair.url}/metrics"
    before = {name: value(http(frontend).body.decode(), name) for name in counted}
    sides = engine_requests(pair)
    answer = send(pair.url, REQUESTS["streamed chat"])
    (prompt,) = [fact for name, fact in outcome(answer).facts if name == "prompt_tokens"]
    assert isinstance(prompt, int)
    counted["dynamo_frontend_input_sequence_tokens_sum"] = prompt
    page = http(frontend).body.decode()
    assert {name: value(page, name) - before[name] for name in counted} == counted
    eventually(
        lambda: engine_requests(pair) == [number + 1 for number in sides],
        within=10,
        what="each side counts the request",
    )


def test_the_pages_show_the_transfer_and_the_side(pair: Pair) -> None:
    transferred = "sglang:kv_transfer_latency_ms_count"
    before = value(pair.prefill.page(), transferred)
    assert send(pair.url, REQUESTS["three prompts"]).status == 200
    eventually(
        lambda: value(pair.prefill.page(), transferred) == before + 3,
        within=10,
        what="three transfers",
    )
    page, other = pair.prefill.page(), pair.decode.page()
    for name in ("total_mb", "speed_gb_s", "bootstrap_ms", "alloc_ms"):
        assert value(page, f"sglang:kv_transfer_{name}_count", engine_type="prefill") > 0
    for name in ("bootstrap_ms", "alloc_ms"):
        assert value(other, f"sglang:kv_transfer_{name}_count", engine_type="decode") > 0
    for name in ("time_to_first_token", "inter_token_latency"):
        assert value(page, f"sglang:{name}_seconds_count") == 0
        assert value(other, f"sglang:{name}_seconds_count", engine_type="decode") > 0


def test_members_that_pair_a_request_are_refused(pair: Pair) -> None:
    for members in ({"bootstrap_room": 7}, {"bootstrap_host": "127.0.0.1"}, {"n": 2}):
        answer = pair.complete(**members)
        assert answer.status == 400, members
        error = answer.json()["error"]
        assert isinstance(error, dict)
        assert error["param"] in members


def test_routes_without_a_forward_pass_are_answered_by_the_decode_worker(pair: Pair) -> None:
    answer = http(f"{pair.url}/v1/tokenize", {"model": MODEL, "prompt": "hi there"})
    assert answer.status == 200
    answer = http(f"{pair.url}/v1/messages/count_tokens", {**CHAT})
    assert answer.status == 200


def test_other_routes_are_answered_with_the_reason(pair: Pair) -> None:
    answer = http(f"{pair.url}/v1/embeddings", {"model": MODEL, "input": "hi"})
    assert answer.status == 404
    error = answer.json()["error"]
    assert isinstance(error, dict)
    assert "prefill" in str(error["message"])
