"""The engine's part of a worker's record, read from SGLang's answers."""

from __future__ import annotations

import pytest

from dynamometer.engines.interface import ModelCards
from dynamometer.engines.sglang_info import engine_info
from dynamometer.runtime.record import Json

CARDS = ModelCards(cards={"m": {"id": "m", "max_model_len": 2048}})


def rank(tokens: Json, sequences: Json) -> Json:
    """Return the members of SGLang 0.5.23's `internal_states` that are read, and another one."""
    return {
        "effective_max_running_requests_per_dp": sequences,
        "memory_usage": {"token_capacity": tokens, "kvcache": 0.008},
    }


def answer(**changed: Json) -> dict[str, Json]:
    """Return a shortened answer of SGLang 0.5.23."""
    return {
        "version": "0.5.23",
        "context_length": None,
        "page_size": 4,
        "kv_cache_dtype": "auto",
        "max_total_num_tokens": 8192,
        "max_running_requests": 9,
        "max_prefill_tokens": 16384,
        "dp_size": 1,
        "internal_states": [rank(8192, 9)],
        "api_key": "secret",
        **changed,
    }


ONE = {
    "version": "0.5.23",
    "context_length": 2048,
    "total_kv_blocks": 2048,
    "kv_block_size": 4,
    "kv_cache_dtype": "auto",
    "max_sequences": 9,
    "max_batched_tokens": 16384,
}


def test_only_the_documented_members_are_read() -> None:
    assert engine_info(answer(), CARDS) == ONE


def test_data_parallel_ranks_are_added() -> None:
    info = engine_info(answer(dp_size=2, internal_states=[rank(8192, 9), rank(4096, 8)]), CARDS)
    assert info == ONE | {"total_kv_blocks": 3072, "max_sequences": 17}


@pytest.mark.parametrize("states", [None, [], [rank(None, None)], "x", [[]], [{}]])
def test_without_ranks_the_requested_limits_count(states: Json) -> None:
    assert engine_info(answer(internal_states=states), CARDS) == ONE
    two = engine_info(answer(internal_states=states, dp_size=2), CARDS)
    assert two == ONE | {"total_kv_blocks": 4096}


def test_a_requested_context_length_overrides_the_models() -> None:
    assert engine_info(answer(context_length=1024), CARDS)["context_length"] == 1024


@pytest.mark.parametrize("text", [None, 7, "x", [], {}, {"page_size": "x", "version": 1}])
def test_an_invalid_answer_has_no_members(text: Json) -> None:
    assert engine_info(text, ModelCards()) == {}


@pytest.mark.parametrize("nonsense", [None, "x", 0, -1, 1.5, True, [], {}, 10**400, float("nan")])
def test_an_invalid_number_is_omitted(nonsense: Json) -> None:
    info = engine_info(answer(page_size=nonsense, max_prefill_tokens=nonsense), CARDS)
    expected = dict(ONE)
    del expected["total_kv_blocks"], expected["kv_block_size"], expected["max_batched_tokens"]
    assert info == expected
