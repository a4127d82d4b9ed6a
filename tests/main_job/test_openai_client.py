"""Requests by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from stack import Stack

pytestmark = pytest.mark.engine


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.frontend_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat(client: openai.OpenAI, stack: Stack) -> None:
    answer = client.chat.completions.create(
        model=str(stack.model), messages=[{"role": "user", "content": "hi"}], max_tokens=7
    )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 7


def test_streamed_chat_and_completion(client: openai.OpenAI, stack: Stack) -> None:
    chunks = list(
        client.chat.completions.create(
            model=str(stack.model),
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=7,
            stream=True,
            extra_body={"ignore_eos": True},
        )
    )
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    texts = client.completions.create(
        model=str(stack.model),
        prompt="hi",
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    assert [c.usage.completion_tokens for c in texts if c.usage] == [7]


async def test_async_chat(stack: Stack) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{stack.frontend_url}/v1", api_key="none", max_retries=0
    ) as client:
        stream = await client.chat.completions.create(
            model=str(stack.model),
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=7,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        usages = [chunk.usage async for chunk in stream if chunk.usage]
        assert [usage.completion_tokens for usage in usages] == [7]
        assert str(stack.model) in [model.id async for model in client.models.list()]


def test_responses(client: openai.OpenAI, stack: Stack) -> None:
    answer = client.responses.create(model=str(stack.model), input="hi", max_output_tokens=16)
    assert answer.model == str(stack.model)


def test_models(client: openai.OpenAI, stack: Stack) -> None:
    assert [model.id for model in client.models.list()] == [str(stack.model)]
    assert client.models.retrieve(str(stack.model)).id == str(stack.model)


def test_embeddings_raise_the_engines_own_error(client: openai.OpenAI, stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError, match="embedding model"):
        client.embeddings.create(model=str(stack.model), input="hi")


def test_an_unknown_model_raises_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as raised:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])
    assert raised.value.code == "model_not_found"
