from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.frontend.body import BadBodyError, parse

JSON = "application/json"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_model_and_stream_are_read() -> None:
    body = parse(b' {"stream": true, "model": "a\\u00e9", "n": 2} ', JSON)
    assert (body.model, body.stream, body.client_asked_for_usage) == ("aé", True, False)


@pytest.mark.parametrize("stream", [b"1", b'"true"', b"null", b"false", b"[]"])
def test_only_true_is_a_stream(stream: bytes) -> None:
    assert not parse(b'{"stream": %s}' % stream, JSON).stream


def test_of_a_name_given_twice_the_last_counts_as_for_the_engine() -> None:
    assert parse(b'{"model": "a", "model": "b"}', JSON).model == "b"


@given(st.dictionaries(st.text(), values), st.booleans())
def test_any_object_is_understood_and_usage_is_all_that_is_added(
    content: dict[str, object], compact: bool
) -> None:
    content.pop("model", None)
    text = json.dumps(content, separators=(",", ":") if compact else None).encode()
    body = parse(text, JSON)
    assert body.content == text
    wanted = json.loads(text)
    options = wanted.get("stream_options")
    wanted["stream_options"] = (options if isinstance(options, dict) else {}) | {
        "include_usage": True
    }
    assert json.loads(body.with_usage()) == wanted


@pytest.mark.parametrize(
    ("text", "spliced"),
    [
        (b"{}", b'{"stream_options":{"include_usage":true}}'),
        (b" { } \n", b' { "stream_options":{"include_usage":true}} \n'),
        (b'{"x": 1.10}', b'{"x": 1.10,"stream_options":{"include_usage":true}}'),
        (b'{"x":"}"}', b'{"x":"}","stream_options":{"include_usage":true}}'),
        (
            b'{"stream_options" : null , "x":1e400}',
            b'{"stream_options" : {"include_usage": true} , "x":1e400}',
        ),
        (
            b'{"stream_options":{"include_usage":false,"continuous_usage_stats":true}}',
            b'{"stream_options":{"include_usage": true, "continuous_usage_stats": true}}',
        ),
    ],
)
def test_all_other_bytes_stay(text: bytes, spliced: bytes) -> None:
    assert parse(text, JSON).with_usage() == spliced


@given(st.binary(max_size=60))
def test_any_bytes_are_understood_or_refused(content: bytes) -> None:
    try:
        understood = isinstance(json.loads(content.decode()), dict)
    except ValueError:
        understood = False
    if understood and not isinstance(json.loads(content).get("model"), int | list | dict):
        assert parse(content, JSON).content == content
    else:
        with pytest.raises(BadBodyError):
            parse(content, JSON)


@pytest.mark.parametrize(
    "text", [b'{"a"}', b'{"a":}', b'{"a":1,}', b"{,}", b'{"a":1 "b":2}', b'{"a":1}{', b'{"a":01}']
)
def test_what_json_does_not_allow_is_refused_with_its_place(text: bytes) -> None:
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(BadBodyError, match="column"):
        parse(text, JSON)


def test_a_form_with_a_file_names_its_model() -> None:
    text = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n\x00\xff\r\n"
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--\r\n'
    )
    body = parse(text, "multipart/form-data; boundary=x")
    assert (body.model, body.stream, body.content) == ("whisper", False, text)
