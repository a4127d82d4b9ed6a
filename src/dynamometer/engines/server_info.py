"""What an engine says of itself: SGLang's `/server_info`, which the simulated engine has too.

Read once, when the engine is ready, and put into the worker's record. Of a hundred fields these
mean something to others:

    version                         its release
    context_length                  tokens; null where the model's own holds: its card has that
    internal_states[].memory_usage.token_capacity
                                    the KV cache of each data-parallel rank, tokens
    max_total_num_tokens            the same, of one of `dp_size`
    page_size                       tokens of one block of the cache
    internal_states[].effective_max_running_requests_per_dp
                                    what each rank runs at a time
    max_running_requests            the same as it was asked for: null where it was not
    max_prefill_tokens              prompt tokens of one batch
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dynamometer.engines.interface import ModelCards
from dynamometer.names import label_value
from dynamometer.runtime.record import (
    CONTEXT_LENGTH,
    ENGINE_VERSION,
    KV_BLOCK_SIZE,
    MAX_BATCHED_TOKENS,
    MAX_SEQUENCES,
    TOTAL_KV_BLOCKS,
    Json,
    number,
)


def engine_info(answer: Json, models: ModelCards) -> dict[str, Json]:
    """What the answer of `/server_info` says; without what it does not say, or says as nonsense.

    Args:
        answer: the answer, parsed.
        models: what the engine's `/v1/models` says.
    """
    if not isinstance(answer, dict):
        return {}
    states = answer.get("internal_states")
    ranks = [rank for rank in states if isinstance(rank, dict)] if isinstance(states, list) else []
    block = _count(answer.get("page_size"))
    tokens = _sum(_member(rank.get("memory_usage"), "token_capacity") for rank in ranks)
    if tokens is None:
        of_one = _count(answer.get("max_total_num_tokens"))
        tokens = of_one and of_one * (_count(answer.get("dp_size")) or 1)
    sequences = _sum(rank.get("effective_max_running_requests_per_dp") for rank in ranks)
    card = next(iter(models.cards.values()), None)
    length = _count(answer.get("context_length")) or _count(_member(card, "max_model_len"))
    version = answer.get("version")
    found: Mapping[str, Json] = {
        ENGINE_VERSION: label_value(version) if isinstance(version, str) else None,
        CONTEXT_LENGTH: length,
        TOTAL_KV_BLOCKS: tokens // block if tokens and block else None,
        KV_BLOCK_SIZE: block,
        MAX_SEQUENCES: sequences or _count(answer.get("max_running_requests")),
        MAX_BATCHED_TOKENS: _count(answer.get("max_prefill_tokens")),
    }
    return {name: value for name, value in found.items() if value is not None}


def model_cards(answer: Json) -> ModelCards:
    """Return the models of an answer of `/v1/models`; none where it is not such an answer.

    A name that no label can hold (an unpaired surrogate) is left out.
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


def _count(value: Json) -> int | None:
    """A whole number above 0, which is what all of these are."""
    found = number(value)
    return int(found) if found and found == int(found) else None


def _sum(values: Iterable[Json]) -> int | None:
    """Of all ranks; None where one does not say."""
    found = [_count(value) for value in values]
    counted = [count for count in found if count is not None]
    return sum(counted) if counted and len(counted) == len(found) else None


def request_name(model: str, card: Json) -> str:
    """Return the name by which a request asks for a listed model: `BASE:ADAPTER` for an adapter.

    SGLang lists adapters by their bare names, with their base as `parent`, but answers a request
    for a bare name by the base alone (`_parse_model_parameter` of its OpenAI server).
    """
    parent = _member(card, "parent")
    return f"{parent}:{model}" if isinstance(parent, str) and parent else model
