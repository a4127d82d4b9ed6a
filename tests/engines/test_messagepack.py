"""MessagePack is decoded as msgspec decodes it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.engines.messagepack import decode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
)
VALUES = st.recursive(
    SCALARS, lambda values: st.lists(values, max_size=20) | st.dictionaries(st.text(), values)
)


@given(VALUES)
def test_a_value_is_decoded(value: object) -> None:
    encoded = msgspec.msgpack.encode(value)
    assert decode(encoded) == value
    assert decode(encoded + b"rest") == value


@pytest.mark.parametrize("size", [15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_each_form_of_a_length_is_decoded(size: int) -> None:
    for value in ("x" * size, [1] * size, {str(number): number for number in range(size)}):
        assert decode(msgspec.msgpack.encode(value)) == value


@given(VALUES, st.data())
def test_a_truncated_value_is_an_error(value: object, data: st.DataObject) -> None:
    encoded = msgspec.msgpack.encode(value)
    with pytest.raises(ValueError, match=r"."):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@pytest.mark.parametrize(
    "content",
    [b"", b"\xc1", b"\xc4\x01a", b"\xd4\x01a", b"\x81\x01\x02", b"\x91" * 100_000, b"\xa1\xff"],
    ids=["empty", "unused", "binary", "extension", "key", "deep", "text"],
)
def test_other_content_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(content)
