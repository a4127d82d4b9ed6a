"""A stream's last event, however its bytes come."""

from __future__ import annotations

import pytest

from dynamometer.runtime.stream_end import StreamEnd

CONTENT = b'data: {"choices":[{"text":"data: [DONE]"}]}\n\n'
LAST = {
    "openai": b"data: [DONE]\n\n",
    "carriage returns": b"data: [DONE]\r\n\r\n",
    "no space": b"data:[DONE]\n\n",
    "messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "responses": b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
    "responses, cut": b'event: response.incomplete\ndata: {"response":{}}\n\n',
}


def reached(*chunks: bytes) -> bool:
    end = StreamEnd()
    for chunk in chunks:
        end.sent(chunk)
    return end.reached


@pytest.mark.parametrize("last", LAST.values(), ids=LAST)
def test_the_last_event_is_seen_alone_with_content_and_cut_in_two(last: bytes) -> None:
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
    ],
)
def test_anything_else_is_no_end(chunks: tuple[bytes, ...]) -> None:
    assert not reached(*chunks)
