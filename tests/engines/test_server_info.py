"""What a worker's record says of its engine, out of what SGLang answers."""

from __future__ import annotations

import pytest

from dynamometer.engines.interface import ModelCards
from dynamometer.engines.server_info import engine_info
from dynamometer.runtime.record import Json

CARDS = ModelCards(cards={"m": {"id": "m", "max_model_len": 2048}})


def rank(tokens: Json, sequences: Json) -> Json:
    """The members of SGLang 0.5.23's `internal_states` that are read, and one beside them."""
    return {
        "effective_max_running_requests_per_dp": sequences,
        "memory_usage": {"token_capacity": tokens, "kvcache": 0.008},
    }


def answer(**changed: Json) -> dict[str, Json]:
    """Of SGLang 0.5.23, shortened."""
    return {
        "version": "0.5.23",
        "context_length": None,
        "page_size": 4,
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
    "max_sequences": 9,
    "max_batched_tokens": 16384,
}


def test_named_numbers_are_taken_and_nothing_else() -> None:
    assert engine_info(answer(), CARDS) == ONE


def test_data_parallel_ranks_are_added() -> None:
    info = engine_info(answer(dp_size=2, internal_states=[rank(8192, 9), rank(4096, 8)]), CARDS)
    assert info == ONE | {"total_kv_blocks": 3072, "max_sequences": 17}


@pytest.mark.parametrize("states", [None, [], [rank(None, None)], "x", [[]], [{}]])
def test_without_its_ranks_what_the_engine_was_started_with_counts(states: Json) -> None:
    assert engine_info(answer(internal_states=states), CARDS) == ONE
    two = engine_info(answer(internal_states=states, dp_size=2), CARDS)
    assert two == ONE | {"total_kv_blocks": 4096}


def test_a_context_length_that_was_set_is_the_engines() -> None:
    assert engine_info(answer(context_length=1024), CARDS)["context_length"] == 1024


@pytest.mark.parametrize("text", [None, 7, "x", [], {}, {"page_size": "x", "version": 1}])
def test_an_answer_that_says_nothing_tells_nothing(text: Json) -> None:
    assert engine_info(text, ModelCards()) == {}


@pytest.mark.parametrize("nonsense", [None, "x", 0, -1, 1.5, True, [], {}, 10**400, float("nan")])
def test_a_number_that_is_nonsense_is_left_out(nonsense: Json) -> None:
    info = engine_info(answer(page_size=nonsense, max_prefill_tokens=nonsense), CARDS)
    expected = dict(ONE)
    del expected["total_kv_blocks"], expected["kv_block_size"], expected["max_batched_tokens"]
    assert info == expected
