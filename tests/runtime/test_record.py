from __future__ import annotations

import json

import pytest

from dynamometer.errors import DiscoveryError
from dynamometer.runtime.record import Record, Role, State

RECORD = Record(
    role=Role.WORKER,
    id=2**64 - 1,
    namespace="dynamo",
    component="backend",
    endpoint="generate",
    models=("a", "b"),
    engine="sglang",
    request_url="http://127.0.0.1:1",
    model_info={"a": {"id": "a", "max_model_len": 2048}},
    engine_info={"version": "0.5.23", "total_kv_blocks": 8192, "max_sequences": 8},
    state=State.READY,
    since=12.5,
)


def test_a_record_survives_json() -> None:
    assert Record.from_json(RECORD.to_json()) == RECORD


def test_fields_of_a_later_version_are_passed_over() -> None:
    content = json.loads(RECORD.to_json()) | {"zone": "a"}
    assert Record.from_json(json.dumps(content).encode()) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"id": "7"},
        {"id": 0},
        {"id": 2**64},
        {"role": "cook"},
        {"state": "asleep"},
        {"models": 3},
        {"models": [3]},
        {"model_info": []},
        {"request_url": 8},
        {"namespace": None},
        {"models": ["\ud800"]},
        {"since": []},
        {"request_url": "http://127.0.0.1:99999"},
        {"request_url": "http://[::1"},
        {"request_url": "nowhere"},
    ],
)
def test_a_field_of_the_wrong_type_is_no_record(change: dict[str, object]) -> None:
    content = json.loads(RECORD.to_json()) | change
    with pytest.raises(DiscoveryError):
        Record.from_json(json.dumps(content).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 200_000])
def test_half_a_record_is_none(text: bytes) -> None:
    with pytest.raises(DiscoveryError):
        Record.from_json(text)


def test_a_record_of_an_earlier_version_tells_nothing_of_its_engine() -> None:
    content = json.loads(RECORD.to_json())
    del content["engine_info"]
    assert Record.from_json(json.dumps(content).encode()).engine_info == {}


@pytest.mark.parametrize(
    "nonsense",
    [
        [],
        None,
        "x",
        {"total_kv_blocks": None},
        {"total_kv_blocks": [1]},
        {"total_kv_blocks": True},
        {"total_kv_blocks": -1},
        {"total_kv_blocks": 10**400},
        {"total_kv_blocks": float("nan")},
        {"total_kv_blocks": float("inf")},
        {"version": "\ud800"},
        {"\ud800": 1},
    ],
)
def test_nonsense_of_an_engine_spoils_no_record(nonsense: object) -> None:
    content = json.loads(RECORD.to_json()) | {"engine_info": nonsense}
    record = Record.from_json(json.dumps(content).encode())
    assert record.models == RECORD.models
    assert record.engine_info == {}


def test_of_an_engines_facts_those_that_make_sense_are_taken() -> None:
    facts = {"version": "0.5.23", "context_length": 2048, "total_kv_blocks": {}}
    content = json.loads(RECORD.to_json()) | {"engine_info": facts}
    record = Record.from_json(json.dumps(content).encode())
    assert record.engine_info == {"version": "0.5.23", "context_length": 2048}
