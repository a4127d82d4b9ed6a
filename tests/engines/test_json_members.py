from __future__ import annotations

import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.engines.json_members import set_member, set_members

NAMES = ("a", "b", "stream_options", "include_usage", "é", "")
spaces = st.sampled_from(["", " ", "\n", "\t \r\n"])
scalars = st.sampled_from(
    ["null", "true", "1.10", "1e400", "-0", '""', '"}"', '"{"', r'"\"a\": null"', r'"\\"', '"é"']
)


@st.composite
def names(draw: st.DrawFn) -> str:
    """Return a name as JSON text, with any of its characters escaped."""
    characters = [
        f"\\u{ord(character):04x}" if draw(st.integers(0, 5)) == 0 else character
        for character in draw(st.sampled_from(NAMES))
    ]
    return f'"{"".join(characters)}"'


def arrays(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=3).map(lambda texts: f"[{','.join(texts)}]")


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    members = draw(st.lists(st.tuples(names(), spaces, spaces, values, spaces), max_size=4))
    return f"{{{','.join(''.join((a, n, b, ':', b, v)) for n, a, b, v, _ in members)}}}"


values = st.recursive(scalars, lambda inner: arrays(inner) | objects(inner), max_leaves=12)
top = st.lists(st.tuples(names(), spaces, spaces, values, spaces), max_size=6)


@given(top, st.sampled_from(NAMES), values, spaces, spaces)
def test_the_last_member_of_a_name_is_replaced_and_no_other_byte_changes(
    members: list[tuple[str, str, str, str, str]], name: str, value: str, before: str, after: str
) -> None:
    text, place = before + "{", None
    for number, (member, space, around, old, behind) in enumerate(members):
        text += ("," if number else "") + space + member + around + ":" + around
        if json.loads(member) == name:
            place = len(text), len(text) + len(old)
        text += old + behind
    end = len(text)
    text += "}" + after
    edited = set_member(text.encode(), (name,), value.encode()).decode()
    if place is not None:
        assert edited == text[: place[0]] + value + text[place[1] :]
    else:
        added = ("," if members else "") + json.dumps(name, ensure_ascii=False) + ":" + value
        assert edited == text[:end] + added + text[end:]
    assert json.loads(edited) == json.loads(text) | {name: json.loads(value)}


@given(top, st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_a_nested_member_is_set_in_the_object_that_counts(
    members: list[tuple[str, str, str, str, str]], outer: str, inner: str
) -> None:
    text = "{" + ",".join(f"{a}{n}{b}:{v}{c}" for n, a, b, v, c in members) + "}"
    before = json.loads(text)
    options = before.get(outer)
    if options is not None and not isinstance(options, dict):
        with pytest.raises(msgspec.ValidationError):
            set_member(text.encode(), (outer, inner), b"true")
        return
    edited = json.loads(set_member(text.encode(), (outer, inner), b"true"))
    assert edited == before | {outer: (options or {}) | {inner: True}}


@given(top, st.dictionaries(st.sampled_from(NAMES), values, min_size=1), spaces)
def test_several_members_are_set_as_one_after_the_other(
    members: list[tuple[str, str, str, str, str]], changed: dict[str, str], after: str
) -> None:
    text = "{" + ",".join(f"{a}{n}{b}:{v}{c}" for n, a, b, v, c in members) + "}" + after
    wanted = text.encode()
    for name, value in changed.items():
        wanted = set_member(wanted, (name,), value.encode())
    encoded = {name: value.encode() for name, value in changed.items()}
    assert set_members(text.encode(), encoded) == wanted


def test_no_name_is_added_twice() -> None:
    text = rb'{"room":null,"x":{"host":1},"ho\u0073t":null}'
    edited = set_members(text, {"host": b'"h"', "port": b"1", "room": b"7"})
    assert edited == rb'{"room":7,"x":{"host":1},"ho\u0073t":"h","port":1}'


@pytest.mark.parametrize("text", [b"", b"[]", b"1", b'{"a":1,}', b'{"a"}', b"\xef\xbb\xbf{}"])
def test_text_that_is_not_an_object_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        set_member(text, ("a",), b"1")
    with pytest.raises(msgspec.DecodeError):
        set_members(text, {"a": b"1", "b": b"2"})


def test_deep_nesting_is_refused_and_crashes_nothing() -> None:
    depth = 100_000
    with pytest.raises(RecursionError):
        set_member(b'{"x":' + b"[" * depth + b"]" * depth + b"}", ("a",), b"1")


@pytest.mark.parametrize("part", [b'"' + b"a" * 2**20 + b'",', b"[],", b'"\\n",', b'{"a":null},'])
def test_sixteen_mebibytes_take_less_than_a_second(part: bytes) -> None:
    body = b'{"x":[' + part * (2**24 // len(part)) + b'0],"a":null}'
    begun = time.perf_counter()
    edited = set_member(body, ("a", "b"), b"true")
    assert time.perf_counter() - begun < 1
    assert edited == body.removesuffix(b"null}") + b'{"b":true}}'
    begun = time.perf_counter()
    edited = set_members(body, {"b": b"1", "c": b"2", "a": b"3"})
    assert time.perf_counter() - begun < 1
    assert edited == body.removesuffix(b"null}") + b'3,"b":1,"c":2}'
