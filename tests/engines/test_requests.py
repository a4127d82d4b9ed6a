from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.engines.requests import BadBodyError, parse
from dynamometer.runtime.record import Json

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
def test_a_stream_is_requested_by_the_values_that_the_engine_accepts(stream: str) -> None:
    assert parse(b'{"stream": %s}' % stream.encode(), JSON).stream


@pytest.mark.parametrize(
    "stream", ["false", "0", '"off"', "null", "[]", "{}", "2", '"x"', "[1]", "1e999", "-1e999"]
)
def test_a_stream_is_not_requested_by_other_values(stream: str) -> None:
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
def test_usage_is_added_if_the_client_does_not_request_it(options: str, added: bool) -> None:
    body = parse(b'{"stream": true, "stream_options": %s}' % options.encode(), JSON)
    assert body.add_usage is added


def test_the_last_member_of_a_name_counts_as_for_the_engine() -> None:
    assert parse(b'{"model": "a", "model": "b"}', JSON).model == "b"
    assert parse(rb'{"model": "a", "mod\u0065l": "b"}', JSON).model == "b"
    assert not parse(b'{"stream": true, "stream": false}', JSON).stream
    options = b'{"include_usage": true}, "stream_options": null'
    assert parse(b'{"stream": true, "stream_options": %s}' % options, JSON).add_usage
    twice = b'{"include_usage": true, "include_usage": false}'
    assert parse(b'{"stream": true, "stream_options": %s}' % twice, JSON).add_usage
    parameters = b'{"n": 2}, "sampling_params": {"n": 3, "n": 4}'
    assert parse(b'{"sampling_params": %s}' % parameters, JSON).samples == 4


def test_nested_members_are_ignored() -> None:
    body = parse(b'{"x": {"model": "a", "stream": true, "sampling_params": {"n": 3}}}', JSON)
    assert (body.model, body.stream, body.samples) == (None, False, 1)


def test_usage_is_added_to_long_stream_options() -> None:
    options = b'{"x": "%s"}' % (b"a" * 2**20)
    body = parse(b'{"stream": true, "stream_options": %s}' % options, JSON)
    assert body.add_usage
    assert json.loads(body.with_usage())["stream_options"]["include_usage"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'\xef\xbb\xbf{"model": "m"}', "byte order mark"),
        ("\ufeff{}".encode("utf-16-le"), "not valid JSON"),
    ],
)
def test_a_body_that_the_engine_cannot_read_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(BadBodyError, match=message):
        parse(text, JSON)


@given(st.dictionaries(texts, values), st.none() | st.dictionaries(texts, values), st.booleans())
def test_any_object_is_parsed_and_only_usage_is_added(
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
            b'{"stream_options":{"include_usage":true},"x":{"stream_options":null}}',
        ),
        (
            b'{"metadata":{"stream_options":null}}',
            b'{"metadata":{"stream_options":null},"stream_options":{"include_usage":true}}',
        ),
        (
            rb'{"x":"\"stream_options\":null","\u0073tream_options":null}',
            rb'{"x":"\"stream_options\":null","\u0073tream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream_options":{"include_usage":true},"stream_options":null,"x":0}',
            b'{"stream_options":{"include_usage":true},"stream_options":{"include_usage":true},"x":0}',
        ),
        (
            b'{"stream_options": {"include_usage" : 0, "a": {"include_usage": 0}, "b":1.0 }}',
            b'{"stream_options": {"include_usage" : true, "a": {"include_usage": 0}, "b":1.0 }}',
        ),
    ],
)
def test_all_other_bytes_stay(text: bytes, spliced: bytes) -> None:
    assert parse(text, JSON).with_usage() == spliced


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(content: bytes) -> None:
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
def test_invalid_json_is_refused_with_its_position(text: bytes) -> None:
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


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(b"--x\r\n%s\r\n\r\n%s\r\n" % (head.encode(), content) for head, content in parts)
        + b"--x--\r\n"
    )


def field(name: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"'


@pytest.mark.parametrize(
    ("parts", "model"),
    [
        ([(field("model"), b"a"), (field("model"), b"b")], "b"),
        ([('content-disposition: form-data;name=model', b"m")], "m"),
        ([(f'Content-Type: text/plain\r\n{field("model")}', b"m")], "m"),
        ([(field("other"), b""), (field("model"), b"m\r\nn")], "m\r\nn"),
        # A file, whose name or content looks like a field.
        ([('Content-Disposition: form-data; name="file"; filename="a; name=model"', b"no")], None),
        ([('Content-Disposition: form-data; name="model"; filename="model"', b"no")], None),
        ([('Content-Disposition: form-data; name="file"; filename="f"', b"--x--")], None),
        (
            [
                ('Content-Disposition: form-data; name="file"; filename="f"', b"a --x b"),
                (field("model"), b"m"),
            ],
            "m",
        ),
        ([(f"X-Other: name=model\r\n{field('user')}", b"no")], None),
        ([(field("timestamp_granularities[]"), b"word")] * 100 + [(field("model"), b"m")], "m"),
    ],
)  # fmt: skip
def test_a_form_names_its_model_only_in_a_field(
    parts: list[tuple[str, bytes]], model: str | None
) -> None:
    for content_type in ("multipart/form-data; boundary=x", ' Multipart/Form-Data;boundary="x"'):
        assert parse(form(*parts), content_type).model == model


def test_a_form_with_another_boundary_is_refused() -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=y"):
        with pytest.raises(BadBodyError, match="boundary"):
            parse(b"--x\r\n\r\n--x--", content_type)


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
def test_the_number_of_answers_to_a_prompt(parameters: object, samples: int) -> None:
    content = json.dumps({"text": "x", "sampling_params": parameters}).encode()
    assert parse(content, "application/json").samples == samples


REFUSED = (
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "bootstrap_pair_key",
    "disagg_prefill_dp_rank",
    "decode_tp_size",
)


RANKS = frozenset({"routed_dp_rank", "data_parallel_rank"})
others = texts.filter(lambda name: name != "model")


def escaped(name: str) -> str:
    return f"\\u{ord(name[0]):04x}{name[1:]}"


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", ["0", '""', '"h"', "false", "[]", "[null]", "{}", "7"])
def test_members_that_only_a_frontend_may_set_are_refused(name: str, value: str) -> None:
    for text in (
        f'{{"model":"m","{name}":{value}}}',
        f'{{"model":"m","{escaped(name)}":{value}}}',
        f'{{"{name}":null,"{name}":{value}}}',
        f'{{"{escaped(name)}" : null , "model":"m", "{name}" : {value}\n}}',
    ):
        assert parse(text.encode(), JSON).refused == name


@pytest.mark.parametrize("name", REFUSED)
def test_null_and_nested_members_are_not_refused(name: str) -> None:
    for text in (
        f'{{"{name}": null }}',
        f'{{"{name}":1,"{name}":null}}',  # the engine reads the last one
        f'{{"sampling_params":{{"{name}":1}},"x":"{name}"}}',
    ):
        assert parse(text.encode(), JSON).refused is None


@given(st.dictionaries(others | st.sampled_from(REFUSED), values), st.randoms())
def test_no_body_with_a_refused_member_passes(content: dict[str, object], random: Random) -> None:
    def written(name: str) -> str:
        return (
            escaped(name) if name in REFUSED and random.random() < 0.5 else json.dumps(name)[1:-1]
        )

    members = (f'"{written(name)}":{json.dumps(value)}' for name, value in content.items())
    found = parse(f"{{{','.join(members)}}}".encode(), JSON).refused
    refused = sorted(name for name in REFUSED if content.get(name) is not None)
    assert found == next(iter(refused), None)


@pytest.mark.parametrize(
    ("content", "member"),
    [
        ({}, None),
        ({"n": 1, "best_of": None, "background": False, "routed_dp_rank": None}, None),
        ({"n": 1.0}, None),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"n": [2]}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"sampling_params": {"n": 1, "x": {"n": 2}}}, None),
        ({"sampling_params": {"n": 2}}, "sampling_params.n"),
        ({"sampling_params": {"n": 2, "beam_width": 4}}, "sampling_params.n"),
        ({"sampling_params": [{}, {"n": 1}]}, None),
        ({"sampling_params": [{"n": 1}, {"n": 2}]}, "sampling_params.n"),
        ({"sampling_params": [{"n": 3}] * 3}, "sampling_params.n"),
        ({"sampling_params": []}, None),
        ({"sampling_params": "x"}, None),
        ({"sampling_params": None, "n": None}, None),
        ({"routed_dp_rank": 0}, "routed_dp_rank"),
        ({"data_parallel_rank": 1}, "data_parallel_rank"),
        ({"background": True}, "background"),
        ({"background": "yes"}, "background"),
        ({"x": {"n": 2, "background": True, "routed_dp_rank": 1}}, None),
    ],
)
def test_a_pair_of_workers_supports_one_answer_to_a_prompt(
    content: dict[str, object], member: str | None
) -> None:
    fault = parse(json.dumps(content).encode(), JSON).unsupported(RANKS)
    assert (fault and fault[0]) == member
    if member in RANKS:
        assert parse(json.dumps(content).encode(), JSON).unsupported(frozenset()) is None


@pytest.mark.parametrize(
    ("text", "member"),
    [
        (b'{"n": %s}', "n"),
        (b'{"best_of": %s}', "best_of"),
        (b'{"sampling_params": {"n": %s}}', "sampling_params.n"),
        (b'{"sampling_params": [{}, {"n": %s}]}', "sampling_params.n"),
        (b'{"background": %s}', None),
        (b'{"routed_dp_rank": %s}', "routed_dp_rank"),
    ],
)
@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" + b"0" * 400, b"1" * 70_000])
def test_a_number_that_is_out_of_range_is_read(
    text: bytes, member: str | None, number: bytes
) -> None:
    fault = parse(text % number, JSON).unsupported(RANKS)
    assert (fault and fault[0]) == member


def test_the_last_member_of_a_name_counts_for_a_pair() -> None:
    for text in (b'{"n":1,"n":2}', rb'{"n":1,"\u006e":2}', b'{"sampling_params":{"n":1,"n":2}}'):
        assert parse(text, JSON).unsupported(RANKS)
    assert parse(b'{"n":2,"n":1}', JSON).unsupported(RANKS) is None


def test_a_pair_of_workers_supports_no_form() -> None:
    for preamble in (b"", b"{}", b"[" * 100_000):
        body = parse(
            preamble + b"\r\n" + form((field("model"), b"m")), "multipart/form-data; boundary=x"
        )
        fault = body.unsupported(RANKS)
        assert fault is not None
        assert fault[0] is None


def test_a_form_that_begins_like_json_stays_unchanged() -> None:
    text = b"{}\r\n" + form((field("model"), b"m"))
    body = parse(text, "multipart/form-data; boundary=x")
    body.set_model("other")
    assert body.content == text


@given(st.dictionaries(others | st.sampled_from(REFUSED[:3]), st.none() | values))
def test_the_members_of_a_pair_are_the_only_change(content: dict[str, object]) -> None:
    text = json.dumps(content).encode()
    body = parse(text, JSON)
    for room in (2**32, 2**62 - 1):  # and again for a retry
        members: dict[str, Json] = {"bootstrap_host": "::1", "bootstrap_port": 8998}
        members["bootstrap_room"] = room
        body.set_members(members)
        assert json.loads(body.content) == content | members
        pairs = json.loads(body.content, object_pairs_hook=list)
        assert len({name for name, _ in pairs}) == len(pairs)


def test_a_request_without_a_stream_has_no_other_changes() -> None:
    text = b'{"stream": 1 , "stream_options":{"include_usage":true},"x":1.10}'
    changed = text.replace(b"1 ,", b"false ,")
    assert parse(text, JSON).without_stream(options=False) == changed
    # SGLang's Rust server refuses options without a stream.
    without = changed.replace(b'{"include_usage":true}', b"null")
    assert parse(text, JSON).without_stream(options=True) == without
    body = parse(b'{"stream":false, "x":1.10}', JSON)
    assert body.without_stream(options=True) is body.content
