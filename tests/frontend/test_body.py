from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.frontend.body import BadBodyError, TooLargeError, decompressed, parse

JSON = "application/json"
texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def test_model_and_stream_are_read() -> None:
    body = parse(b' {"stream": true, "model": "a\\u00e9", "n": 2} ', JSON)
    assert (body.model, body.stream, body.add_usage) == ("a\u00e9", True, True)


@pytest.mark.parametrize("stream", ["true", "1", "1.0", '"true"', '"YES"', '"on"', '"1"', '"T"'])
def test_a_stream_is_what_the_engine_takes_for_one(stream: str) -> None:
    assert parse(b'{"stream": %s}' % stream.encode(), JSON).stream


@pytest.mark.parametrize("stream", ["false", "0", '"off"', "null", "[]", "{}", "2", '"x"', "[1]"])
def test_and_what_it_does_not(stream: str) -> None:
    body = parse(b'{"stream": %s}' % stream.encode(), JSON)
    assert not body.stream
    assert not body.add_usage


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ("null", True),
        ("{}", True),
        ('{"include_usage": false}', True),
        ('{"include_usage": 0, "x": [1]}', True),
        ('{"include_usage": true}', False),
        ('{"include_usage": 1}', False),
        ('{"include_usage": "yes"}', False),
        ("1", False),
        ("[]", False),
        ('"x"', False),
    ],
)
def test_usage_is_asked_for_where_the_client_has_not_and_options_are_an_object(
    options: str, added: bool
) -> None:
    body = parse(b'{"stream": true, "stream_options": %s}' % options.encode(), JSON)
    assert body.add_usage is added


def test_of_a_name_given_twice_the_last_counts_as_for_the_engine() -> None:
    assert parse(b'{"model": "a", "model": "b"}', JSON).model == "b"


@given(st.dictionaries(texts, values), st.none() | st.dictionaries(texts, values), st.booleans())
def test_any_object_is_understood_and_usage_is_all_that_is_added(
    content: dict[str, object], options: dict[str, object] | None, compact: bool
) -> None:
    content |= {"stream": True, "model": "m", "stream_options": options}
    text = json.dumps(content, separators=(",", ":") if compact else None).encode()
    body = parse(text, JSON)
    assert body.content == text
    wanted = json.loads(text)
    wanted["stream_options"] = (options or {}) | {"include_usage": True}
    assert json.loads(body.with_usage()) == wanted


@pytest.mark.parametrize(
    ("text", "spliced"),
    [
        (b"{}", b'{"stream_options":{"include_usage":true}}'),
        (b" { } \n", b' { "stream_options":{"include_usage":true}} \n'),
        (b'{"x": 1.10}', b'{"x": 1.10,"stream_options":{"include_usage":true}}'),
        (b'{"x":"}"}', b'{"x":"}","stream_options":{"include_usage":true}}'),
        (b'{"x":"{"}', b'{"x":"{","stream_options":{"include_usage":true}}'),
        (
            b'{"stream_options" : null , "x":1e400}',
            b'{"stream_options" : {"include_usage":true} , "x":1e400}',
        ),
        (
            b'{"stream_options":{"include_usage":false,"continuous_usage_stats":true}}',
            b'{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}',
        ),
        (
            b'{"stream_options":null,"x":{"stream_options":null}}',
            b'{"stream_options":null,"x":{"stream_options":null},'  # noqa: ISC004  # one value
            b'"stream_options":{"include_usage":true}}',
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
    if not understood:
        with pytest.raises(BadBodyError):
            parse(content, JSON)


@pytest.mark.parametrize(
    "text", [b'{"a"}', b'{"a":}', b'{"a":1,}', b"{,}", b'{"a":1 "b":2}', b'{"a":1}{', b'{"a":01}']
)
def test_what_json_does_not_allow_is_refused_with_its_place(text: bytes) -> None:
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(BadBodyError, match="byte"):
        parse(text, JSON)


@pytest.mark.parametrize("stream", ["true", "True", "1"])
def test_a_form_with_a_file_names_its_model(stream: str) -> None:
    text = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n\x00\xff\r\n"
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\n%s\r\n--x--\r\n'
    ) % stream.encode()
    body = parse(text, "multipart/form-data; boundary=x")
    assert (body.model, body.stream, body.content) == ("whisper", True, text)
    assert not body.add_usage


def test_a_form_of_another_boundary_is_none() -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=y"):
        with pytest.raises(BadBodyError, match="boundary"):
            parse(b"--x\r\n\r\n--x--", content_type)


def test_a_compressed_body_is_read_and_a_bomb_is_not() -> None:
    text = b'{"model": "m"}' * 100
    assert decompressed(gzip.compress(text), "gzip", limit=2000) == text
    assert decompressed(zlib.compress(text), "deflate", limit=2000) == text
    assert decompressed(text, "identity", limit=10) == text
    with pytest.raises(TooLargeError):
        decompressed(gzip.compress(b" " * 2**24), "gzip", limit=2000)
    for content, encoding in ((text, "gzip"), (gzip.compress(text)[:-9], "gzip"), (text, "br")):
        with pytest.raises(BadBodyError):
            decompressed(content, encoding, limit=2000)


@pytest.mark.parametrize(
    ("parameters", "samples"),
    [
        ({"n": 3}, 3),
        ({}, 1),
        (None, 1),
        ({"n": 0}, 1),
        ({"n": "x"}, 1),
        ({"n": None}, 1),
        ([{"n": 2}, {"n": 2}], 2),
        ([{"n": 2}] * 20_000, 2),
        ([{}], 1),
        ([], 1),
        ([3], 1),
        ("x", 1),
        ({"n": 2, "beam_width": 4}, 1),
        ({"n": 2, "beam_width": 1}, 2),
        ({"n": 2, "beam_width": None}, 2),
        ([{"n": 2, "beam_width": 4}], 1),
    ],
)
def test_how_many_answers_a_prompt_is_to_have(parameters: object, samples: int) -> None:
    content = json.dumps({"text": "x", "sampling_params": parameters}).encode()
    assert parse(content, "application/json").samples == samples
