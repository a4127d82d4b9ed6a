from __future__ import annotations

import ast
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from dynamometer.engines.sglang_pairing import FIELDS, pair_members


@pytest.mark.parametrize(
    ("bootstrap", "host", "port"),
    [
        ("127.0.0.1:8998", "127.0.0.1", 8998),
        ("prefill-0.example:1", "prefill-0.example", 1),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_the_bootstrap_address_is_split_as_sglang_joins_it(
    bootstrap: str, host: str, port: int
) -> None:
    members = pair_members(bootstrap)
    assert (members["bootstrap_host"], members["bootstrap_port"]) == (host, port)


def test_rooms_of_the_largest_batch_are_64_bit_integers_above_0() -> None:
    for _ in range(1000):
        room = pair_members("h:1")["bootstrap_room"]
        assert isinstance(room, int)
        assert 1 << 32 <= room < (1 << 63) - (1 << 32)


def test_the_headers_are_those_that_sglang_reads() -> None:
    try:
        package = distribution("sglang")
    except PackageNotFoundError:
        pytest.skip("SGLang is not installed here")
    source = Path(str(package.locate_file("sglang/srt/entrypoints/request_headers.py")))
    constants = {
        node.value
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert {name.decode() for name in FIELDS.headers} == {
        name for name in constants if name.startswith("x-override-")
    }
