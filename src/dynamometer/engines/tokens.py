"""How many tokens a request took, as each dialect says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Event = Mapping[str, object]
# Where Anthropic's usage tells of the prompt, by where it came from, and of the answer.
MESSAGES_PARTS: Final = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)


@dataclass(slots=True)
class Tokens:
    """Tokens of a whole request; None where the answer did not say."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


def messages_tokens(usage: Event) -> Tokens:
    """Anthropic's: the prompt is told in up to three parts, by where it came from."""
    fresh, made, cached, output = (integer(usage.get(part), None) for part in MESSAGES_PARTS)
    return Tokens(
        input=None if fresh is None else fresh + (made or 0) + (cached or 0),
        output=output,
        cached=cached,
    )


def openai_tokens(usage: Event) -> Tokens:
    """OpenAI's two spellings: of chats and completions, and of responses and messages."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Tokens(
        input=integer(usage.get("prompt_tokens"), integer(usage.get("input_tokens"), None)),
        output=integer(usage.get("completion_tokens"), integer(usage.get("output_tokens"), None)),
        cached=integer(cached, None),
    )


def generated_tokens(metas: Mapping[int, Event], samples: int) -> Tokens:
    """SGLang's: each answer tells of its whole prompt, which counts once for all its answers.

    Args:
        metas: what each answer says of itself, by its number; a prompt's answers follow each other.
        samples: how many answers each prompt has.
    """

    def total(key: str, *, together: int) -> int | None:
        """Of as many answers as are counted `together`, the first that says it."""
        values: dict[int, int] = {}
        for number, meta in metas.items():
            value = integer(meta.get(key), None)
            if value is not None:
                values.setdefault(number // together, value)
        return sum(values.values()) if values else None

    return Tokens(
        input=total("prompt_tokens", together=samples),
        output=total("completion_tokens", together=1),
        cached=total("cached_tokens", together=samples),
    )


def integer(value: object, default: int | None) -> int | None:
    """Return `value` where it is a whole number, 0 or more, else `default`."""
    counted = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if counted else default  # type: ignore[return-value]  # an int, as was asked
