from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.engines.answers import read_answer
from dynamometer.engines.dialects import Tokens
from dynamometer.engines.interface import Usage
from dynamometer.engines.streams import StreamReader as RealReader


class StreamReader(RealReader):
    """The reader, and the times that it reports."""

    def __init__(self, usage: Usage, *, hide_usage: bool, samples: int = 1) -> None:
        self.content_times: list[float] = []
        super().__init__(
            usage, hide_usage=hide_usage, samples=samples, on_content=self.content_times.append
        )


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def delta(**content: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": content}], "usage": None})


ROLE = delta(role="assistant", content="")
LAST = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
ONLY_USAGE = event({"choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
CHAT = ROLE + delta(content="a") + delta(reasoning_content="b") + LAST + ONLY_USAGE + DONE


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_the_usage_chunk_is_read_and_removed_in_chunks_of_any_size(size: int) -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    parts = [CHAT[i : i + size] for i in range(0, len(CHAT), size)]
    passed = b"".join(reader.feed(part, float(i)) for i, part in enumerate(parts))
    assert passed + reader.finish(9.0) == CHAT.replace(ONLY_USAGE, b"")
    assert reader.tokens == Tokens(7, 3, 2)
    assert len(reader.content_times) == 2
    assert reader.error_code is None


def test_single_events_are_read_as_in_other_chunks() -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    events = [part + b"\n\n" for part in CHAT.split(b"\n\n")[:-1]]
    passed = [reader.feed(part, float(i)) for i, part in enumerate(events)]
    assert passed == [b"" if part == ONLY_USAGE else part for part in events]
    assert (reader.tokens, reader.content_times) == (Tokens(7, 3, 2), [1.0, 2.0])
    assert reader.finish(9.0) == b""


def test_a_client_that_requests_usage_receives_every_byte() -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=False)
    assert reader.feed(CHAT, 0.0) == CHAT
    assert reader.tokens == Tokens(7, 3, 2)


@pytest.mark.parametrize(
    "stream",
    [
        b": a comment\n\n" + DONE,
        b"data: no json\n\n",
        b"data: 7\n\ndata: [1]\n\n",
        b"event: x\r\ndata: {}\r\n\r\nid: 3\n\n",
        b"data: {}",
        b"\n\n\n\n",
        event({"choices": 7, "usage": 3}),
        event({"choices": [{"delta": None}, {"text": None}, 5, {"delta": 5}, {"delta": [1]}]}),
        event({"choices": [], "usage": {"completion_tokens": -3}}).replace(b"-3", b"-3"),
    ],
)
def test_an_unknown_format_passes_unchanged(stream: bytes) -> None:
    reader_of_all = StreamReader(Usage.OPENAI, hide_usage=False)
    assert reader_of_all.feed(stream, 0.0) + reader_of_all.finish(9.0) == stream
    assert reader_of_all.tokens == Tokens()


def test_tool_calls_and_texts_are_content_and_a_role_is_not() -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    reader.feed(ROLE, 1.0)
    assert reader.content_times == []
    reader.feed(delta(tool_calls=[{"index": 0}]), 2.0)
    reader.feed(event({"choices": [{"index": 0, "text": "x"}]}), 3.0)
    assert reader.content_times == [2.0, 3.0]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"error": {"message": "x", "code": 400}}, 400),
        ({"error": {"message": "x", "code": "bad"}}, 500),
        ({"error": {"message": "x", "code": "bad", "type": "invalid_request_error"}}, 400),
        ({"error": {"message": "x", "code": "insufficient_quota", "type": "bad"}}, 429),
        ({"error": "x"}, 500),
        ({"object": "error", "message": "x", "code": 503}, 503),
        # Statuses as text, and numbers that are not statuses.
        ({"error": {"message": "x", "code": "429"}}, 429),
        ({"object": "error", "message": "x", "code": "503"}, 503),
        ({"error": {"message": "x", "code": True}}, 500),
        ({"error": {"message": "x", "code": 1302, "type": "rate_limit_error"}}, 429),
    ],
)
def test_an_error_in_the_stream_has_a_status(content: object, code: int) -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    assert reader.feed(event(content), 0.0) == event(content)
    assert reader.error_code == code


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"event: error\ndata: Internal\n\n", 500),
        (b"event: error\n: the connection broke\n\n", 500),
        (b'event: error\ndata: {"message":"x","code":503}\n\n', 503),
        (b'event:error\r\ndata: {"detail":"x"}\r\n\r\n', 500),
        (b'data: {"detail":"x"}\nevent: error\n\n', 500),
        (b"event: errors\ndata: 1\n\n", None),
        (b"data: event: error\n\n", None),
    ],
)
def test_an_event_named_error_is_one_whatever_its_data(stream: bytes, code: int | None) -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    assert reader.feed(stream, 0.0) == stream
    assert (reader.error_code, reader.ended) == (code, code is not None)


def refused(status: int | None) -> dict[str, object]:
    reason = {"type": "abort", "message": "x"} | ({} if status is None else {"status_code": status})
    return {"text": "", "meta_info": {"completion_tokens": 0, "finish_reason": reason}}


def failed(code: str) -> dict[str, object]:
    return {"type": "response.failed", "response": {"error": {"code": code, "message": "x"}}}


@pytest.mark.parametrize(
    ("route", "content", "code"),
    [
        (Usage.MESSAGES, {"type": "error", "error": {"type": "overloaded_error"}}, 529),
        (Usage.MESSAGES, {"type": "error", "error": {"type": "api_error"}}, 500),
        (Usage.MESSAGES, {"type": "error", "error": {"type": "invalid_request_error"}}, 400),
        (Usage.RESPONSES, {"type": "response.failed", "response": {"error": {"code": "x"}}}, 500),
        (Usage.RESPONSES, {"type": "response.failed", "response": {"error": None}}, 500),
        (Usage.RESPONSES, {"type": "error", "code": "rate_limit_exceeded", "message": "x"}, 429),
        (Usage.RESPONSES, {"type": "error", "code": "unheard_of", "message": "x"}, 500),
        (Usage.RESPONSES, {"type": "error", "error": {"code": "invalid_prompt"}}, 400),
        (Usage.RESPONSES, failed("rate_limit_exceeded"), 429),
        (Usage.RESPONSES, failed("invalid_prompt"), 400),
        (Usage.RESPONSES, failed("insufficient_quota"), 429),
        (Usage.RESPONSES, failed("server_error"), 500),
        (Usage.GENERATE, refused(503), 503),
        (Usage.GENERATE, refused(None), 499),
        (Usage.RESPONSES, {"type": "response.cancelled", "response": {}}, 499),
    ],
)
def test_the_error_of_each_dialect_has_a_status(
    route: Usage, content: dict[str, object], code: int | None
) -> None:
    reader = StreamReader(route, hide_usage=False)
    reader.feed(event(content), 1.0)
    assert reader.error_code == code
    assert reader.content_times == ([] if code else [1.0])


def test_the_tokens_of_each_dialect_are_read() -> None:
    responses = StreamReader(Usage.RESPONSES, hide_usage=False)
    responses.feed(event({"type": "response.output_text.delta", "delta": "a"}), 1.0)
    completed = {"usage": {"input_tokens": 4, "output_tokens": 5}}
    responses.feed(event({"type": "response.completed", "response": completed}), 2.0)
    assert (responses.tokens, responses.content_times) == (Tokens(4, 5), [1.0])
    messages = StreamReader(Usage.MESSAGES, hide_usage=False)
    messages.feed(event({"type": "message_start", "message": {"usage": {"input_tokens": 4}}}), 0.0)
    messages.feed(event({"type": "content_block_delta", "delta": {"text": "a"}}), 1.0)
    messages.feed(event({"type": "message_delta", "usage": {"output_tokens": 6}}), 2.0)
    assert (messages.tokens, messages.content_times) == (Tokens(4, 6), [1.0])
    generate = StreamReader(Usage.GENERATE, hide_usage=False)
    for index, tokens in ((0, 1), (1, 1), (0, 2), (1, 3)):
        meta = {"prompt_tokens": 2, "completion_tokens": tokens, "cached_tokens": 1}
        generate.feed(event({"index": index, "meta_info": meta}), float(tokens))
    assert generate.tokens == Tokens(4, 5, 2)


def test_a_huge_event_passes_unread_and_does_not_hide_what_follows() -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    huge = delta(content="x" * 6_000_000)
    stream = huge + delta(content="a") + ONLY_USAGE + DONE
    passed = b"".join(reader.feed(stream[i : i + 65536], 0.0) for i in range(0, len(stream), 65536))
    assert passed + reader.finish(9.0) == stream.replace(ONLY_USAGE, b"")
    assert reader.tokens == Tokens(7, 3, 2)


CACHED = {"input_tokens": 1, "cache_read_input_tokens": 29, "output_tokens": 6}


def test_the_prompt_parts_of_messages_are_added() -> None:
    """Anthropic's `input_tokens` are the tokens that were not in the cache."""
    whole = json.dumps({"type": "message", "usage": CACHED}).encode()
    assert read_answer(whole, Usage.MESSAGES).tokens == Tokens(30, 6, 29)
    reader = StreamReader(Usage.MESSAGES, hide_usage=False)
    begun = {**CACHED, "cache_creation_input_tokens": 2, "output_tokens": 0}
    reader.feed(event({"type": "message_start", "message": {"usage": begun}}), 0.0)
    reader.feed(event({"type": "message_delta", "usage": {"output_tokens": 6}}), 1.0)
    assert reader.tokens == Tokens(32, 6, 29)


def test_a_prompt_with_several_answers_counts_once() -> None:
    metas = [{"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 6} for _ in range(4)]
    whole = json.dumps([{"meta_info": meta} for meta in metas]).encode()
    assert read_answer(whole, Usage.GENERATE, samples=2).tokens == Tokens(14, 12, 12)
    reader = StreamReader(Usage.GENERATE, hide_usage=False, samples=2)
    for index, meta in enumerate(metas):
        reader.feed(event({"index": index, "meta_info": meta}), float(index))
    assert reader.tokens == Tokens(14, 12, 12)


def test_a_stream_that_ends_early_counts_the_prompts_whose_answers_have_begun() -> None:
    """Three of the eight answers to two prompts have content when the client disconnects."""
    reader = StreamReader(Usage.GENERATE, hide_usage=False, samples=4)
    for index, prompt in ((2, 7), (3, 7), (5, 100)):
        meta = {"prompt_tokens": prompt, "completion_tokens": 1, "cached_tokens": prompt - 1}
        reader.feed(event({"index": index, "meta_info": meta}), float(index))
    assert reader.tokens == Tokens(107, 3, 105)


def block(**part: object) -> dict[str, object]:
    return {"type": "content_block_delta", "index": 0, "delta": part}


def arguments(delta: object) -> dict[str, object]:
    return {"type": "response.function_call_arguments.delta", "delta": delta}


def chat(**part: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": part}]}


@pytest.mark.parametrize(
    ("route", "content", "counts"),
    [
        (Usage.RESPONSES, arguments("{"), True),
        (Usage.RESPONSES, arguments(""), False),
        (Usage.RESPONSES, {"type": "response.output_text.delta"}, False),
        (Usage.RESPONSES, {"type": "response.output_text.done", "text": "a"}, False),
        (Usage.MESSAGES, block(type="text_delta", text="a"), True),
        (Usage.MESSAGES, block(type="text_delta", text=""), False),
        (Usage.MESSAGES, block(type="thinking_delta", thinking="a"), True),
        (Usage.MESSAGES, block(type="input_json_delta", partial_json="{"), True),
        (Usage.MESSAGES, block(type="input_json_delta", partial_json=""), False),
        (Usage.MESSAGES, {"type": "content_block_delta", "delta": None}, False),
        (Usage.MESSAGES, {"type": "message_delta", "delta": {"stop_reason": "end"}}, False),
        (Usage.OPENAI, chat(content="", reasoning_content=None, tool_calls=[]), False),
        (Usage.OPENAI, chat(hidden_states=[0.5]), False),
        (Usage.OPENAI, chat(role="assistant", hidden_states=[0.5], content="a"), True),
    ],
)
def test_an_event_counts_if_it_has_generated_content(
    route: Usage, content: dict[str, object], counts: bool
) -> None:
    reader = StreamReader(route, hide_usage=False)
    reader.feed(event(content), 1.0)
    assert reader.content_times == [1.0] * counts


def test_prompt_parts_stay_until_they_are_reported_again() -> None:
    """Anthropic's `message_delta` may report some counts again."""
    reader = StreamReader(Usage.MESSAGES, hide_usage=False)
    begun = {"input_tokens": 5, "cache_read_input_tokens": 95, "output_tokens": 1}
    reader.feed(event({"type": "message_start", "message": {"usage": begun}}), 0.0)
    delta = {"input_tokens": 5, "output_tokens": 6}
    reader.feed(event({"type": "message_delta", "delta": {}, "usage": delta}), 1.0)
    assert reader.tokens == Tokens(100, 6, 95)
    again = {"cache_read_input_tokens": None, "cache_creation_input_tokens": 3}
    reader.feed(event({"type": "message_delta", "delta": {}, "usage": again}), 2.0)
    assert reader.tokens == Tokens(103, 6, 95)


DELTA = b'{"choices":[{"index":0,"delta":{"content":"a"}}]}'
SPACED = b'{"choices": [\n{"index":0,"delta":\n{"content":"b"}}]}'
USED = json.dumps({"choices": [], "usage": USAGE}).encode()


def lines_of(content: bytes, form: str) -> list[bytes]:
    """Return an event's lines in one of the forms that the format allows."""
    data = [b"data: " + line for line in content.split(b"\n")]
    return {
        "plain": data,
        "no space": [b"data:" + line for line in content.split(b"\n")],
        "named before": [b"event: chunk", b"id: 1", *data],
        "named after": [*data, b"id: 1", b"retry: 3"],
        "comment": [b": data: {}", *data, b":"],
        "field without colon": [b"id", *data, b"event"],
        "more empty lines": [b"", b"", *data],
    }[form]


FORMS = ["plain", "no space", "named before", "named after", "comment", "field without colon",
         "more empty lines"]  # fmt: skip


def dispatched(stream: bytes) -> list[list[bytes]]:
    """Return the lines of each event by the format's rules, of an incomplete last event too."""
    events: list[list[bytes]] = [[]]
    for line in stream.removeprefix(b"\xef\xbb\xbf").splitlines():
        if line:
            events[-1].append(line)
        else:
            events.append([])
    return [event for event in events if event]


@given(
    st.lists(st.sampled_from(FORMS), min_size=4, max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
)
def test_every_form_that_the_format_allows_is_read(
    forms: list[str], end: bytes, mark: bool, whole: bool, sizes: list[int]
) -> None:
    contents = (DELTA, SPACED, USED)
    events = [lines_of(c, form) for c, form in zip(contents, forms, strict=False)]
    if whole:  # or else the usage is in a last event that has no empty line
        events.append(lines_of(b"[DONE]", forms[3]))
    pieces = [end.join([*lines, b"", b""]) for lines in events]
    stream = b"\xef\xbb\xbf" * mark + b"".join(pieces)
    if not whole:
        stream = stream.removesuffix(end * 2)
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    passed, at = b"", 0
    for size in itertools.cycle(sizes):
        if at >= len(stream):
            break
        passed += reader.feed(stream[at : at + size], 1.0)
        at += size
    passed += reader.finish(1.0)
    assert reader.tokens == Tokens(7, 3, 2)
    assert reader.content_times == [1.0, 1.0]
    hidden = [line for line in events[2] if line]
    assert dispatched(passed) == [e for e in dispatched(stream) if e != hidden]
    every = StreamReader(Usage.OPENAI, hide_usage=False)
    parts = (every.feed(stream[i : i + sizes[0]], 1.0) for i in range(0, len(stream), sizes[0]))
    assert b"".join(parts) + every.finish(1.0) == stream
    assert every.tokens == reader.tokens


def test_a_last_event_without_its_empty_line_is_read() -> None:
    """The last event has usage, an error, or content; the client receives the engine's bytes."""
    for last, passes in ((USED, False), (b'{"error":{"code":429}}', True), (DELTA, True)):
        reader = StreamReader(Usage.OPENAI, hide_usage=True)
        assert reader.feed(b"data: " + last, 1.0) == b""
        assert reader.finish(2.0) == (b"data: " + last if passes else b"")
        assert (reader.tokens.output == 3) == (last == USED)
        assert reader.error_code == (429 if b"429" in last else None)
        assert reader.content_times == [2.0] * (last == DELTA)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_the_end_of_a_huge_event_may_span_two_chunks(end: bytes, before: int) -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    huge = b'data: {"x":"' + b"x" * 2**22 + b'"}' + end
    used = b"data: " + USED + end
    cut = len(huge) - len(end) + min(before, len(end))
    passed = reader.feed(huge[:cut], 0.0)
    assert len(passed) > 2**22 - 10
    passed += reader.feed(huge[cut:] + used[:9], 0.0)
    passed += reader.feed(used[9:], 0.0) + reader.finish(0.0)
    assert passed == huge
    assert reader.tokens == Tokens(7, 3, 2)


def test_the_rest_of_a_huge_event_is_not_held_back() -> None:
    reader = StreamReader(Usage.OPENAI, hide_usage=True)
    reader.feed(b"data: " + b"x" * 2**23, 0.0)
    assert len(reader.feed(b"x" * 1000, 0.0)) == 1000
    assert len(reader.finish(0.0)) == 3


@pytest.mark.parametrize(
    ("route", "last", "ends"),
    [
        (Usage.OPENAI, DONE, True),
        (Usage.OPENAI, b"data:[DONE]\r\n\r\n", True),
        (Usage.OPENAI, b"id: 7\ndata: [DONE]\n\n", True),
        (Usage.OPENAI, event({"error": {"message": "x"}}), True),
        (Usage.OPENAI, LAST, False),
        (Usage.OPENAI, event("[DONE]"), False),
        (Usage.OPENAI, delta(content="data: [DONE]\n\n"), False),
        (Usage.OPENAI, b": [DONE]\n\n", False),
        (Usage.GENERATE, DONE, True),
        (Usage.GENERATE, event(refused(503)), True),
        (Usage.NONE, DONE, True),
        (Usage.MESSAGES, b"event: message_stop\n" + event({"type": "message_stop"}), True),
        (Usage.MESSAGES, b"event: error\n" + event({"type": "error", "error": {"x": 1}}), True),
        (Usage.MESSAGES, event({"type": "message_delta"}), False),
        (Usage.RESPONSES, event({"type": "response.completed", "response": {}}), True),
        (Usage.RESPONSES, event({"type": "response.incomplete", "response": {}}), True),
        (Usage.RESPONSES, event(failed("server_error")), True),
        (Usage.RESPONSES, event({"type": "error", "code": "x"}), True),
        (Usage.RESPONSES, event({"type": "response.in_progress", "response": {}}), False),
    ],
)
def test_the_last_event_ends_the_stream(route: Usage, last: bytes, ends: bool) -> None:
    for cut in (len(last), len(last) // 2):
        reader = StreamReader(route, hide_usage=False)
        reader.feed(last[:cut], 1.0)
        reader.feed(last[cut:], 1.0)
        assert reader.ended is ends


def finish(reason: object, index: int = 0) -> bytes:
    return event({"choices": [{"index": index, "delta": {}, "finish_reason": reason}]})


def generate(reason: object, index: int = 0) -> bytes:
    return event({"text": "a", "index": index, "meta_info": {"finish_reason": reason}})


def typed(kind: str, **more: object) -> bytes:
    return event({"type": kind} | more)


CONTENT = delta(content="a")
STARTED = typed("response.created", response={"status": "in_progress"})


@pytest.mark.parametrize(
    ("usage", "stream", "complete", "code"),
    [
        # Without any event.
        (Usage.OPENAI, b"", False, None),
        (Usage.OPENAI, b": ping\n\n", False, None),
        (Usage.OPENAI, DONE, False, None),
        (Usage.GENERATE, DONE, False, None),
        (Usage.RESPONSES, b"", False, None),
        (Usage.MESSAGES, b"", False, None),
        (Usage.NONE, b"", False, None),
        (Usage.NONE, b"data: anything\n\n", True, None),
        # Without a terminator, the finish reasons of all choices mark the end.
        (Usage.OPENAI, CONTENT, False, None),
        (Usage.OPENAI, CONTENT + finish("stop"), True, None),
        (Usage.OPENAI, CONTENT + finish("stop", 1), False, None),
        (Usage.OPENAI, CONTENT + finish("stop", 1) + finish("length"), True, None),
        (Usage.OPENAI, CONTENT + DONE, True, None),
        (Usage.GENERATE, generate(None), False, None),
        (Usage.GENERATE, generate({"type": "stop"}), True, None),
        (Usage.GENERATE, generate(None) + DONE, True, None),
        (Usage.RESPONSES, STARTED, False, None),
        (Usage.RESPONSES, STARTED + typed("response.completed", response={}), True, None),
        (Usage.RESPONSES, STARTED + typed("response.incomplete", response={}), True, None),
        (Usage.MESSAGES, typed("message_start", message={}), False, None),
        (Usage.MESSAGES, typed("message_delta", delta={"stop_reason": "end_turn"}), False, None),
        (Usage.MESSAGES, typed("message_start") + typed("message_stop"), True, None),
        # A finish reason that is not a success.
        (Usage.OPENAI, CONTENT + finish("abort") + DONE, True, 499),
        (Usage.OPENAI, CONTENT + finish("cancelled") + DONE, True, 499),
        (Usage.OPENAI, CONTENT + finish("error") + DONE, True, 500),
        (Usage.OPENAI, CONTENT + finish("error"), True, 500),
        (Usage.OPENAI, finish("error", 1) + finish("abort") + DONE, True, 500),
        (Usage.OPENAI, finish("abort") + event({"choices": [], "usage": USAGE}) + DONE, True, 499),
        (Usage.OPENAI, finish("content_filter") + DONE, True, None),
        (Usage.OPENAI, event({"choices": [{"text": "a", "finish_reason": "abort"}]}), True, 499),
        (Usage.GENERATE, generate({"type": "abort"}) + DONE, True, 499),
        (Usage.GENERATE, generate({"type": "abort", "status_code": 503}) + DONE, True, 503),
        (Usage.GENERATE, generate({"type": "error"}) + DONE, True, 500),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_is_complete_or_not_at_its_end(
    usage: Usage, stream: bytes, complete: bool, code: int | None, cut: bool
) -> None:
    reader = StreamReader(usage, hide_usage=False)
    half = len(stream) // 2 if cut else 0
    passed = reader.feed(stream[:half], 1.0) + reader.feed(stream[half:], 1.0) + reader.finish(2.0)
    assert passed == stream
    assert (reader.complete, reader.error_code) == (complete, code)


def test_a_stream_with_unread_long_events_counts_as_complete() -> None:
    reader = StreamReader(Usage.RESPONSES, hide_usage=False)
    last = typed("response.completed", response={"output": "a" * 2**23})
    for begin in range(0, len(last), 2**16):
        reader.feed(last[begin : begin + 2**16], 1.0)
    assert not reader.ended
    assert reader.complete
