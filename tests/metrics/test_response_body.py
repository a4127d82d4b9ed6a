"""Bodies that are compressed, and bodies that are too large."""

from __future__ import annotations

import gzip
import random
import time
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.metrics.response_body import EncodingError, TooLargeError, decode


def deflated(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw": deflated,
}


@given(st.binary(max_size=1000), st.sampled_from(sorted(COMPRESS)))
def test_a_compressed_body_is_what_it_was(body: bytes, form: str) -> None:
    encoding = "gzip" if form == "gzip" else "deflate"
    assert decode(COMPRESS[form](body), encoding, 1000) == body


@pytest.mark.parametrize("form", COMPRESS)
def test_no_more_than_the_limit_is_decoded(form: str) -> None:
    encoding = "gzip" if form == "gzip" else "deflate"
    assert len(decode(COMPRESS[form](bytes(1 << 20)), encoding, 1 << 20)) == 1 << 20
    with pytest.raises(TooLargeError, match="1024 KiB"):
        decode(COMPRESS[form](bytes((1 << 20) + 1)), encoding, 1 << 20)


def test_members_of_gzip_are_one_body_within_one_limit() -> None:
    members = gzip.compress(b"one") + gzip.compress(b"two")
    assert decode(members, "gzip", 6) == b"onetwo"
    with pytest.raises(TooLargeError):
        decode(members, "gzip", 5)


@pytest.mark.parametrize("form", COMPRESS)
def test_a_body_of_many_empty_members_is_refused_at_once(form: str) -> None:
    encoding = "gzip" if form == "gzip" else "deflate"
    members = COMPRESS[form](b"") * 380_000
    started = time.process_time()
    with pytest.raises(EncodingError, match="more than 1,000 members"):
        decode(members, encoding, 8 << 20)
    assert time.process_time() - started < 2


def test_a_body_of_a_thousand_members_of_any_size_is_decoded() -> None:
    assert decode(gzip.compress(b"x") * 1000, "gzip", 1000) == b"x" * 1000
    large = random.Random(1).randbytes(200_000)
    members = gzip.compress(large) + gzip.compress(b"") + gzip.compress(large)
    assert decode(members, "gzip", 400_000) == large + large


def test_an_empty_body_is_empty_in_each_encoding() -> None:
    assert decode(b"", "gzip", 1) == decode(b"", "deflate", 1) == b""


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (b"plain", "gzip", "not gzip"),
        (b"plain", "deflate", "not deflate"),
        (gzip.compress(b"x" * 100)[:-1], "gzip", "truncated"),
        (b"\x0b\x02", "br", "'br' is not supported"),
        (b"x", "z" * 100, "'zzz"),
    ],
)
def test_the_message_names_the_encoding(body: bytes, encoding: str, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        decode(body, encoding, 1000)
