"""Read SGLang's `/server_info` and `/v1/models`; the simulated engine has these routes too.

A worker reads both once, when the engine is ready, and puts the result into its record. These
members of `/server_info` are used:

    version                         SGLang's release
    context_length                  tokens; null for the model's own length, which its card has
    internal_states[].memory_usage.token_capacity
                                    the KV cache of each data-parallel rank, tokens
    max_total_num_tokens            the KV cache of one of the `dp_size` ranks, tokens
    page_size                       the tokens in one block of the cache
    kv_cache_dtype                  the type of the cache's values; `auto` for the model's own type
    internal_states[].effective_max_running_requests_per_dp
                                    the largest number of requests that a rank runs at a time
    max_running_requests            the requested value of this limit; null by default
    max_prefill_tokens              the largest number of prompt tokens in one batch
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dynamometer.engines.interface import ModelCards
from dynamometer.names import label_value
from dynamometer.runtime.record import (
    CONTEXT_LENGTH,
    ENGINE_VERSION,
    KV_BLOCK_SIZE,
    KV_CACHE_DTYPE,
    MAX_BATCHED_TOKENS,
    MAX_SEQUENCES,
    TOTAL_KV_BLOCKS,
    Json,
    number,
)


def engine_info(answer: Json, models: ModelCards) -> dict[str, Json]:
    """Return `Record.engine_info` from `/server_info`, without missing or invalid members.

    Args:
        answer: the parsed answer of `/server_info`.
        models: the models in the engine's `/v1/models`.
    """
    if not isinstance(answer, dict):
        return {}
    states = answer.get("internal_states")
    ranks = [rank for rank in states if isinstance(rank, dict)] if isinstance(states, list) else []
    block = _positive(answer.get("page_size"))
    tokens = _sum(_member(rank.get("memory_usage"), "token_capacity") for rank in ranks)
    if tokens is None:
        of_one_rank = _positive(answer.get("max_total_num_tokens"))
        tokens = of_one_rank and of_one_rank * (_positive(answer.get("dp_size")) or 1)
    sequences = _sum(rank.get("effective_max_running_requests_per_dp") for rank in ranks)
    card = next(iter(models.cards.values()), None)
    length = _positive(answer.get("context_length")) or _positive(_member(card, "max_model_len"))
    found: Mapping[str, Json] = {
        ENGINE_VERSION: _text(answer.get("version")),
        CONTEXT_LENGTH: length,
        TOTAL_KV_BLOCKS: tokens // block if tokens and block else None,
        KV_BLOCK_SIZE: block,
        KV_CACHE_DTYPE: _text(answer.get("kv_cache_dtype")),
        MAX_SEQUENCES: sequences or _positive(answer.get("max_running_requests")),
        MAX_BATCHED_TOKENS: _positive(answer.get("max_prefill_tokens")),
    }
    return {name: value for name, value in found.items() if value is not None}


def model_cards(answer: Json) -> ModelCards:
    """Return the models in an answer of `/v1/models`; none if the answer is invalid.

    A name with an unpaired surrogate, which a label value cannot contain, is omitted.
    """
    listed = _member(answer, "data")
    cards = {
        str(card["id"]): card
        for card in (listed if isinstance(listed, list) else ())
        if isinstance(card, dict) and "id" in card
    }
    return ModelCards(
        cards={name: card for name, card in cards.items() if label_value(name) == name}
    )


def _member(content: Json, name: str) -> Json:
    return content.get(name) if isinstance(content, dict) else None


def _text(value: Json) -> str | None:
    return label_value(value) if isinstance(value, str) else None


def _positive(value: Json) -> int | None:
    """Return `value` if it is a whole number above 0, else None."""
    found = number(value)
    return int(found) if found and found == int(found) else None


def _sum(values: Iterable[Json]) -> int | None:
    """Return the sum over all ranks; None if a rank has no valid value."""
    found = [_positive(value) for value in values]
    valid = [value for value in found if value is not None]
    return sum(valid) if valid and len(valid) == len(found) else None


def request_name(model: str, card: Json) -> str:
    """Return the name by which a request selects a listed model: `BASE:ADAPTER` for an adapter.

    SGLang lists an adapter by its bare name, with its base as `parent`, but answers a request for
    the bare name with the base model (`_parse_model_parameter` of its OpenAI server).
    """
    parent = _member(card, "parent")
    return f"{parent}:{model}" if isinstance(parent, str) and parent else model
