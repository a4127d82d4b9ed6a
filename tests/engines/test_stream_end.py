"""The last event of a stream, in any chunks."""

from __future__ import annotations

import pytest

from dynamometer.engines.stream_end import StreamEnd

CONTENT = b'data: {"choices":[{"text":"data: [DONE]"}]}\n\n'
LAST = {
    "openai": b"data: [DONE]\n\n",
    "carriage returns": b"data: [DONE]\r\n\r\n",
    "no space": b"data:[DONE]\n\n",
    "messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "responses": b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
    "responses, cut": b'event: response.incomplete\ndata: {"response":{}}\n\n',
    "more lines": b"id: 3\nevent: response.failed\nretry: 1\ndata: {\ndata: }\n\n",
    "error": b'data: {"error": {"message": "no", "code": 500}}\n\n',
    "error, without spaces": b'data:{"error":{"message":"no","code":500}}\n\n',
    "error that calls itself one": b'data: {"object":"error","message":"no","code":400}\n\n',
    "error of messages": b'event: error\ndata: {"type":"error","error":{}}\n\n',
    "lone carriage returns": b"event: message_stop\rdata: {}\r\r",
}


def reached(*chunks: bytes) -> bool:
    end = StreamEnd()
    for chunk in chunks:
        end.add_chunk(chunk)
    return end.reached


@pytest.mark.parametrize("last", LAST.values(), ids=LAST)
def test_the_last_event_is_detected_alone_with_content_and_in_two_chunks(last: bytes) -> None:
    assert reached(CONTENT, last)
    assert reached(CONTENT + last)
    for cut in range(1, len(last)):
        assert reached(CONTENT, last[:cut], last[cut:])
        assert not reached(CONTENT, last[:cut])


@pytest.mark.parametrize(
    "chunks",
    [
        (),
        (b"",),
        (CONTENT,),
        (b"data: [DONE]\n\n", CONTENT),
        (b'data: {"text":"\\n\\ndata: [DONE]\\n\\n"}\n\n',),
        (b'{"text":"data: [DONE]"}',),
        (b'event: response.output_text.delta\ndata: {"type":"response.completed"}\n\n',),
        (b'event: message_delta\ndata: {"usage":{}}\n\n',),
        (b'data: {"error":null,"choices":[]}\n\n',),
        (b"event: errors\ndata: {}\n\n",),
    ],
)
def test_other_events_are_not_the_end(chunks: tuple[bytes, ...]) -> None:
    assert not reached(*chunks)


LONG = b'event: response.completed\ndata: {"response":"%s"}\n\n' % (b"x" * 4000)


@pytest.mark.parametrize("size", [1, 7, 30, 64, 100, 1000, 4000, 5000])
@pytest.mark.parametrize("before", [CONTENT, b"", CONTENT[:-1]])
def test_a_last_event_is_detected_in_any_number_of_chunks(before: bytes, size: int) -> None:
    whole = before + b"\n" * before.endswith(b"}\n") + LONG
    pieces = [whole[begin : begin + size] for begin in range(0, len(whole), size)]
    assert reached(*pieces)
    assert not reached(*pieces[:-1], pieces[-1][:-1])
    assert not reached(*pieces, CONTENT)
    content = CONTENT.replace(b"a", b"a" * 4000)
    assert not reached(*(content[begin : begin + size] for begin in range(0, len(content), size)))


def test_only_the_edges_of_a_long_event_are_kept() -> None:
    end = StreamEnd()
    for _ in range(100):
        end.add_chunk(b"x" * 10_000)
    assert sum(len(getattr(end, kept)) for kept in StreamEnd.__slots__) < 11_000
