"""The streams' reader against the reader that parses every event and keeps every time."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stream_oracle import StreamReader as Oracle

from dynamometer.engines import streams
from dynamometer.engines.interface import Usage
from dynamometer.engines.streams import StreamReader

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
# Texts that need care: escapes, quotes, line ends, other scripts, what looks like an event.
texts = st.sampled_from(
    ["", "a", "b", "é", "日本", "😀", '"', "\\", "\\u0041", "\n", "\r", "\u2028", "\x01", "\ud800",
     "data: [DONE]", "\n\ndata: {}", 'error"}', 'content":"x', "event: error", "null", "{}", "</s>"]
)  # fmt: skip
reasons = st.sampled_from([None, None, None, "stop", "length", "abort", "error", 3, {"type": "x"}])
usages = st.sampled_from([None, None, None, USAGE, {}, {"completion_tokens": 1}, 3, "x"])


@st.composite
def chat(draw: st.DrawFn) -> dict[str, object]:
    delta: dict[str, object] = {}
    for key in ("role", "content", "reasoning_content", "hidden_states"):
        if draw(st.booleans()):
            delta[key] = draw(texts | st.none())
    if draw(st.integers(0, 4)) == 0:
        call = {"index": 0, "function": {"name": draw(texts), "arguments": draw(texts)}}
        delta["tool_calls"] = draw(st.sampled_from([None, [], [call]]))
    choice = {"index": draw(st.integers(0, 2)), "delta": delta, "finish_reason": draw(reasons)}
    logprobs = draw(st.sampled_from([None, {"content": "x"}, {"content": [{"token": "a"}]}]))
    event: dict[str, object] = {
        "id": "1", "created": draw(st.integers(1, 2)), "choices": [choice | {"logprobs": logprobs}]
    }  # fmt: skip
    return event | draw(st.sampled_from([{}, {"usage": draw(usages)}, {"error": None}]))


completion = st.builds(
    lambda text, index, reason, usage: {
        "choices": [{"index": index, "text": text, "finish_reason": reason}], "usage": usage
    },
    texts, st.integers(0, 1), reasons, usages,
)  # fmt: skip
responses = st.one_of(
    st.builds(
        lambda kind, delta, number: {"type": kind, "sequence_number": number, "delta": delta},
        st.sampled_from(["response.output_text.delta", "response.function_call_arguments.delta"]),
        texts, st.integers(1, 2),
    ),
    st.builds(
        lambda kind, usage: {"type": kind, "response": {"usage": usage}},
        st.sampled_from(["response.created", "response.completed", "response.failed"]), usages,
    ),
)  # fmt: skip
messages = st.one_of(
    st.builds(
        lambda kind, key, text: {
            "type": "content_block_delta", "index": 0, "delta": {"type": kind, key: text}
        },
        st.sampled_from(["text_delta", "input_json_delta"]),
        st.sampled_from(["text", "thinking", "partial_json"]), texts,
    ),
    st.builds(
        lambda kind, usage: {"type": kind, "usage": usage, "message": {"usage": usage}},
        st.sampled_from(["message_start", "message_delta", "message_stop", "ping"]),
        st.sampled_from([None, {"input_tokens": 4}, {"output_tokens": 6}]),
    ),
)  # fmt: skip
generate = st.builds(
    lambda index, text, tokens, reason: {
        "index": index, "text": text,
        "meta_info": {"prompt_tokens": 7, "completion_tokens": tokens, "finish_reason": reason},
    },
    st.integers(0, 3), texts, st.integers(0, 3),
    st.sampled_from([None, None, {"type": "stop"}, {"type": "abort", "status_code": 503}]),
)  # fmt: skip
errors = st.sampled_from(
    [{"error": {"message": "x", "code": 400}}, {"object": "error", "code": 503}, {"error": "x"}]
)
CONTENTS = {
    Usage.OPENAI: st.one_of(chat(), completion, errors),
    Usage.RESPONSES: st.one_of(responses, responses, errors),
    Usage.MESSAGES: st.one_of(messages, messages, errors),
    Usage.GENERATE: st.one_of(generate, generate, errors),
    Usage.NONE: st.one_of(chat(), generate),
}
FORMS = ("plain", "plain", "plain", "no space", "named", "named after", "commented", "two lines")


@st.composite
def event_bytes(draw: st.DrawFn, usage: Usage) -> bytes:
    special = draw(st.integers(0, 19))
    if special == 0:
        return b"data: [DONE]\n\n"
    if special == 1:
        return draw(st.sampled_from(
            [b": ping\n\n", b"\n\n", b"\n", b"event: error\ndata: no\n\n", b"data: \xff\n\n",
             b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', b"data: {\n\n"]
        ))  # fmt: skip
    content = draw(CONTENTS[usage])
    compact = draw(st.booleans())
    text = json.dumps(
        content, separators=(",", ":") if compact else None, ensure_ascii=draw(st.booleans())
    ).encode("utf-8", "surrogatepass")
    form = draw(st.sampled_from(FORMS))
    lines = {
        "plain": [b"data: " + text],
        "no space": [b"data:" + text],
        "named": [b"event: delta", b"data: " + text],
        "named after": [b"data: " + text, b"id: 7"],
        "commented": [b": " + text, b"data: " + text],
        "two lines": [b"data: " + text[:1], b"data: " + text[1:]],
    }[form]
    end = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\n", b"\r\n", b"\r"]))
    return end.join([*lines, b"", b""])


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[Usage, list[bytes]]:
    """A dialect, and the pieces of a stream; most pieces are whole events."""
    usage = draw(st.sampled_from(Usage))
    events = draw(st.lists(event_bytes(usage), max_size=6))
    # Several times the same few events: most of a stream's differ in little.
    order = draw(st.lists(st.integers(0, max(0, len(events) - 1)), max_size=25))
    chosen = [events[number] for number in order] if events else []
    how = draw(st.sampled_from(["events", "pairs", "cut", "bytes"]))
    if how == "events":
        return usage, chosen
    if how == "pairs":
        return usage, [b"".join(chosen[i : i + 2]) for i in range(0, len(chosen), 2)]
    stream = b"".join(chosen)
    sizes = draw(st.lists(st.integers(1, 80), min_size=1, max_size=9)) if how == "cut" else [1]
    parts, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(stream):
            break
        parts.append(stream[at : at + size])
        at += size
    return usage, parts


def both(
    usage: Usage, parts: list[bytes], *, hide: bool, samples: int = 1
) -> tuple[list[object], list[object]]:
    """Return the findings of the two readers in a stream."""
    times: list[float] = []
    new = StreamReader(usage, hide_usage=hide, samples=samples, on_content=times.append)
    old = Oracle(usage, hide_usage=hide, samples=samples)
    readers: tuple[StreamReader | Oracle, ...] = (new, old)
    found: list[list[object]] = []
    for reader in readers:
        steps: list[object] = []
        for number, part in enumerate(parts):
            passed = reader.feed(part, float(number))
            steps.append((passed, reader.ended, reader.complete, reader.error_code, reader.tokens))
        steps.append((reader.finish(99.0), reader.ended, reader.successful, reader.complete))
        steps.append((reader.error_code, reader.tokens))
        steps.append(old.content_times if reader is old else times)
        found.append(steps)
    return found[0], found[1]


def chat_event(text: str) -> bytes:
    content = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


@settings(max_examples=600)
@given(cut_streams(), st.booleans(), st.integers(1, 2))
@example((Usage.OPENAI, [chat_event("a"), chat_event(""), chat_event("b")]), True, 1)
@example(
    (Usage.OPENAI, [chat_event("a"), chat_event("b").replace(b'"b"', b'"b","x":"c"')]), True, 1
)
@example((Usage.OPENAI, [chat_event("a"), chat_event("b").replace(b'b"', b'"')]), True, 1)
@example((Usage.OPENAI, [chat_event("a"), chat_event("b").replace(b"b", b"\xff")]), True, 1)
@example((Usage.OPENAI, [chat_event("a"), chat_event("b").replace(b"b", b"\\ud800")]), True, 1)
@example((Usage.OPENAI, [chat_event("a") + b"\n", b"\n", chat_event("b")]), True, 1)
def test_the_reader_finds_what_a_parser_of_every_event_finds(
    stream: tuple[Usage, list[bytes]], hide: bool, samples: int
) -> None:
    usage, parts = stream
    found, expected = both(usage, parts, hide=hide, samples=samples)
    assert found == expected


@pytest.mark.parametrize("text", ["a", "a b", "é", '"', "\\", "\n", "日本", "x" * 1000])
def test_events_that_differ_in_their_text_alone_are_not_parsed(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    loads = orjson.loads

    class Parser:
        @staticmethod
        def loads(content: bytes) -> object:
            parsed.append(content)
            return loads(content)

    monkeypatch.setattr(streams, "orjson", Parser)
    times: list[float] = []
    reader = StreamReader(Usage.OPENAI, hide_usage=True, on_content=times.append)
    event = chat_event(text).decode("unicode_escape") if text == "é" else None
    part = event.encode() if event else chat_event(text)
    for number in range(100):
        assert reader.feed(part * 2, float(number)) == part * 2
    assert len(times) == 200
    assert len(parsed) == (200 if b"\\u" in part else 1)


def test_what_is_kept_of_a_stream_does_not_grow_with_it() -> None:
    counts = {"prompt_tokens": 7, "completion_tokens": 3, "finish_reason": None}
    events = {
        Usage.OPENAI: chat_event("a"),
        Usage.GENERATE: b"data: " + json.dumps(
            {"index": 0, "text": "x" * 1000, "meta_info": counts | {"logprobs": [1] * 100}}
        ).encode() + b"\n\n",
        Usage.RESPONSES: b'data: {"type":"response.output_text.delta","delta":"a"}\n\n',
    }  # fmt: skip
    for usage, event in events.items():
        reader = StreamReader(usage, hide_usage=True)
        reader.feed(event, 0.0)
        tracemalloc.start()
        try:
            for number in range(32_000):
                reader.feed(event, float(number))
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < 8192
