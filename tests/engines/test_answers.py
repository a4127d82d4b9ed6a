from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.engines.answers import read_answer
from dynamometer.engines.dialects import Tokens
from dynamometer.engines.interface import Usage

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


@pytest.mark.parametrize(
    ("body", "usage", "tokens"),
    [
        ({"usage": USAGE}, Usage.OPENAI, Tokens(7, 3, 2)),
        ({"usage": {"input_tokens": 1, "output_tokens": 2}}, Usage.MESSAGES, Tokens(1, 2)),
        ({"meta_info": {"prompt_tokens": 1, "completion_tokens": 2}}, Usage.GENERATE, Tokens(1, 2)),
        (
            [{"meta_info": {"completion_tokens": 2}}, {"meta_info": {"completion_tokens": 3}}],
            Usage.GENERATE,
            Tokens(None, 5),
        ),
        ({"usage": {"completion_tokens": "3"}}, Usage.OPENAI, Tokens()),
        ({"usage": USAGE}, Usage.NONE, Tokens()),
        ([1], Usage.GENERATE, Tokens()),
        ([1], Usage.OPENAI, Tokens()),
    ],
)
def test_tokens_of_an_answer_that_is_not_a_stream(
    body: object, usage: Usage, tokens: Tokens
) -> None:
    assert read_answer(json.dumps(body).encode(), usage).tokens == tokens
    assert read_answer(b"{", usage).tokens == Tokens()


def test_prompts_with_several_answers_count_once_each() -> None:
    metas = [{"prompt_tokens": n, "completion_tokens": 3} for n in (7, 7, 100, 100)]
    whole = json.dumps([{"meta_info": meta} for meta in metas]).encode()
    assert read_answer(whole, Usage.GENERATE, samples=2).tokens == Tokens(107, 12)
    less = json.dumps([{"meta_info": meta} for meta in metas[:3]]).encode()
    assert read_answer(less, Usage.GENERATE, samples=2).tokens == Tokens(107, 9)
    assert read_answer(less, Usage.GENERATE, samples=4).tokens == Tokens(7, 9)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
floats = st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner),
    max_leaves=5,
)
numbers = st.integers(-1, 2**31) | anything


def of(keys: list[str], value: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Return a strategy of objects with some of `keys`, and other keys."""
    some = st.dictionaries(st.sampled_from(keys), value)
    return st.builds(lambda own, more: {**more, **own}, some, st.dictionaries(texts, anything))


count_names = [
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
]
count_names += ["cache_read_input_tokens", "cache_creation_input_tokens"]
details = ["prompt_tokens_details", "input_tokens_details"]
used = st.builds(
    lambda counts, parts: {**counts, **parts},
    of(count_names, numbers),
    st.dictionaries(st.sampled_from(details), of(count_names, numbers) | anything),
)
generated = of(["meta_info"], of(count_names, numbers) | anything) | anything
answers = of(["usage"], used | anything) | generated | st.lists(generated, max_size=5)


def number(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def by_plain_json(body: str, usage: Usage, samples: int) -> Tokens:
    content = json.loads(body)
    if usage is Usage.GENERATE:
        found = Tokens()
        seen: set[tuple[str, int]] = set()
        for index, part in enumerate(content if isinstance(content, list) else [content]):
            meta = part.get("meta_info") if isinstance(part, dict) else None
            for name, key, group in (
                ("input", "prompt_tokens", samples),
                ("output", "completion_tokens", 1),
                ("cached", "cached_tokens", samples),
            ):
                count = number(meta.get(key)) if isinstance(meta, dict) else None
                if count is not None and (name, index // group) not in seen:
                    seen.add((name, index // group))
                    setattr(found, name, (getattr(found, name) or 0) + count)
        return found
    reported = content.get("usage") if isinstance(content, dict) else None
    if usage is Usage.NONE or not isinstance(reported, dict):
        return Tokens()
    if usage is Usage.MESSAGES:
        fresh, cached = (
            number(reported.get("input_tokens")),
            reported.get("cache_read_input_tokens"),
        )
        more = (number(cached) or 0) + (number(reported.get("cache_creation_input_tokens")) or 0)
        whole = None if fresh is None else fresh + more
        return Tokens(whole, number(reported.get("output_tokens")), number(cached))
    part = reported.get("prompt_tokens_details") or reported.get("input_tokens_details")

    def first(*keys: str) -> int | None:
        return next((n for key in keys if (n := number(reported.get(key))) is not None), None)

    return Tokens(
        first("prompt_tokens", "input_tokens"),
        first("completion_tokens", "output_tokens"),
        number(part.get("cached_tokens")) if isinstance(part, dict) else None,
    )


@given(answers, st.sampled_from(Usage), st.integers(1, 3), st.booleans())
def test_an_answer_has_the_tokens_that_plain_json_reads(
    content: object, usage: Usage, samples: int, ascii_only: bool
) -> None:
    body = json.dumps(content, ensure_ascii=ascii_only)
    assert read_answer(body.encode(), usage, samples=samples).tokens == by_plain_json(
        body, usage, samples
    )


@given(st.binary(max_size=40), st.sampled_from(Usage))
def test_an_answer_of_random_bytes_has_no_tokens(body: bytes, usage: Usage) -> None:
    assert read_answer(body, usage).tokens == Tokens()


@pytest.mark.parametrize(
    ("usage", "body", "code"),
    [
        (Usage.OPENAI, {"choices": [{"finish_reason": "stop"}]}, None),
        (Usage.OPENAI, {"choices": [{"finish_reason": "abort"}], "usage": USAGE}, 499),
        (Usage.OPENAI, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "error"}]}, 500),
        (Usage.OPENAI, {"choices": [{"finish_reason": None}]}, None),
        (Usage.OPENAI, {"choices": "none", "usage": USAGE}, None),
        (Usage.OPENAI, {"object": "error", "message": "x", "code": 400}, 400),
        (Usage.OPENAI, {"error": {"type": "rate_limit_error"}}, 429),
        (Usage.OPENAI, {"error": None, "choices": []}, None),
        (Usage.RESPONSES, {"status": "completed", "error": None}, None),
        (Usage.RESPONSES, {"status": "incomplete"}, None),
        (Usage.RESPONSES, {"status": "failed", "error": {"code": "server_error"}}, 500),
        (Usage.RESPONSES, {"status": "failed", "error": {"code": "rate_limit_exceeded"}}, 429),
        (Usage.RESPONSES, {"status": "cancelled"}, 499),
        (Usage.MESSAGES, {"type": "message", "stop_reason": "end_turn"}, None),
        (Usage.MESSAGES, {"type": "error", "error": {"type": "overloaded_error"}}, 529),
        (Usage.GENERATE, {"meta_info": {"finish_reason": {"type": "stop"}}}, None),
        (Usage.GENERATE, {"meta_info": {"finish_reason": {"type": "abort"}}}, 499),
        (
            Usage.GENERATE,
            [
                {"meta_info": {"finish_reason": {"type": "length"}}},
                {"meta_info": {"finish_reason": {"type": "abort", "status_code": 500}}},
            ],
            500,
        ),
        (Usage.NONE, {"error": "x"}, None),
    ],
)
def test_an_error_in_an_answer_has_a_status(usage: Usage, body: object, code: int | None) -> None:
    assert read_answer(json.dumps(body).encode(), usage).error_code == code
