from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dynamometer.errors import DiscoveryError
from dynamometer.runtime.record import MAX_BYTES, VERSION, Json, Record, Role, State

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


PARTS = replace(
    RECORD, mode="prefill", bootstrap="[::1]:8998", nodes=2, node_rank=1, group="blue", epoch=3
)


def test_a_record_of_one_side_or_node_survives_json() -> None:
    assert Record.from_json(PARTS.to_json()) == PARTS


def test_a_record_without_pairs_and_nodes_is_of_the_only_node() -> None:
    content = json.loads(PARTS.to_json())
    for name in ("mode", "bootstrap", "nodes", "node_rank", "group", "epoch"):
        del content[name]
    record = Record.from_json(json.dumps(content).encode())
    assert record == replace(RECORD, mode="aggregated")
    assert (record.bootstrap, record.nodes, record.node_rank) == (None, 1, 0)
    assert (record.group, record.epoch) == ("", 0)


@pytest.mark.parametrize(
    "address",
    [None, "127.0.0.1:8998", "[::1]:1", "[fe80::1]:65535", "prefill-0.svc:8998", "a_b:80"],
)
def test_an_address_has_a_host_and_a_port(address: str | None) -> None:
    record = replace(RECORD, bootstrap=address)
    assert Record.from_json(record.to_json()).bootstrap == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:",
        ":8998",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "127.0.0.1:1_0",
        "127.0.0.1: 80",
        "127.0.0.1:٨",
        "127.0.0.1:port",
        "::1:8998",
        "[::1]",
        "[::1:8998",
        "[::1]8998",
        "[]:8998",
        "[127.0.0.1]:8998",
        "a:b:80",
        "http://127.0.0.1:8998",
        "127.0.0.1:8998/",
        "127.0.0.1:8998?a",
        "127.0.0.1:8998#a",
        "user@127.0.0.1:8998",
        "a b:8998",
        "a\\b:80",
        "a..b:80",
        f"{'a' * 70}:80",
        7,
        ["127.0.0.1:8998"],
        {"host": "127.0.0.1"},
        True,
    ],
    ids=ascii,
)
def test_an_invalid_address_is_named(address: object) -> None:
    content = json.loads(RECORD.to_json()) | {"bootstrap": address}
    with pytest.raises(DiscoveryError, match="bootstrap must be"):
        Record.from_json(json.dumps(content).encode())


@pytest.mark.parametrize("name", ["nodes", "node_rank", "epoch"])
@pytest.mark.parametrize("value", [-1, 1.0, 1.5, "1", True, None, [], 2**63, 10**400])
def test_an_invalid_count_is_named(name: str, value: object) -> None:
    content = json.loads(RECORD.to_json()) | {name: value}
    with pytest.raises(DiscoveryError, match=f"{name} must be an integer"):
        Record.from_json(json.dumps(content).encode())


@pytest.mark.parametrize("value", [None, 3, "a\nb", "\ud800", ["g"]])
def test_an_invalid_group_is_named(value: object) -> None:
    content = json.loads(RECORD.to_json()) | {"group": value}
    with pytest.raises(DiscoveryError, match="group must be a string"):
        Record.from_json(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("nodes", "rank", "message"),
    [
        (0, 0, "nodes must be an integer from 1"),
        (1, 1, "node_rank must be below the number of nodes, 1: 1"),
        (2, 2, "node_rank must be below the number of nodes, 2: 2"),
        (2, 7, "node_rank must be below the number of nodes, 2: 7"),
    ],
)
def test_a_node_has_a_rank_below_the_number_of_nodes(nodes: int, rank: int, message: str) -> None:
    content = json.loads(RECORD.to_json()) | {"nodes": nodes, "node_rank": rank}
    with pytest.raises(DiscoveryError, match=message):
        Record.from_json(json.dumps(content).encode())


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
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
        {"models": "abc"},
        {"models": {"a": 1}},
        {"models": [""]},
        {"models": ["a\nb"]},
        {"models": ["a" * 2000]},
        {"models": [["a"]]},
        {"id": True},
        {"id": 7.0},
        {"id": 10**400},
        {"role": None},
        {"role": ["worker"]},
        {"role": {}},
        {"state": {}},
        {"since": float("nan")},
        {"since": float("inf")},
        {"since": -1},
        {"since": True},
        {"since": 10**400},
        {"mode": None},
        {"mode": ""},
        {"mode": ["prefill"]},
        {"engine": 3},
        {"endpoint": "a\x7f"},
        {"component": "\x00"},
        {"namespace": "\ud800"},
        {"stream_usage": "true"},
        {"stream_usage": 1},
        {"gpu_uuids": "GPU-1"},
        {"metrics_path": "metrics"},
        {"metrics_path": "/me trics"},
        {"metrics_path": "/metrics?a=1"},
        {"labels_header": 1},
        {"labels_header": "x\ny"},
        {"bootstrap": 7},
        {"bootstrap": ""},
        {"model_info": {"a": "\ud800"}},
        {"model_info": {"\ud800": 1}},
        {"model_info": {"a": {"b": {"\udfff": 1}}}},
        {"model_info": "a"},
        {"request_url": "ftp://127.0.0.1:1"},
        {"request_url": "file:///etc/passwd"},
        {"request_url": "javascript:alert(1)"},
        {"request_url": "//127.0.0.1:1"},
        {"request_url": "http://"},
        {"request_url": "http://127.0.0.1:0"},
        {"request_url": "http://127.0.0.1:-1"},
        {"request_url": "http://a..b:80"},
        {"request_url": f"http://{'a' * 70}:80"},
        {"request_url": "http://127.0.0.1:1/?a=b"},
        {"request_url": "http://127.0.0.1:1#a"},
        {"request_url": "http://user:secret@127.0.0.1:1"},
        {"request_url": "http://127.0.0.1 :1"},
        {"request_url": "http://127.0.0.1:1\nX: y"},
        {"request_url": ""},
        {"system_url": "nowhere"},
        {"system_url": ["http://127.0.0.1:1"]},
        {"version": 0},
        {"version": "2"},
        {"version": True},
        {"min_version": None},
    ],
)
def test_a_field_of_the_wrong_type_is_refused(change: dict[str, object]) -> None:
    content = json.loads(RECORD.to_json()) | change
    with pytest.raises(DiscoveryError):
        Record.from_json(json.dumps(content).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 200_000])
def test_a_truncated_record_is_refused(text: bytes) -> None:
    with pytest.raises(DiscoveryError):
        Record.from_json(text)


def test_a_record_of_an_earlier_version_has_no_engine() -> None:
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
def test_nonsense_of_an_engine_is_dropped(nonsense: object) -> None:
    content = json.loads(RECORD.to_json()) | {"engine_info": nonsense}
    record = Record.from_json(json.dumps(content).encode())
    assert record.models == RECORD.models
    assert record.engine_info == {}


def test_valid_properties_of_an_engine_are_kept() -> None:
    facts = {"version": "0.5.23", "context_length": 2048, "total_kv_blocks": {}}
    content = json.loads(RECORD.to_json()) | {"engine_info": facts}
    record = Record.from_json(json.dumps(content).encode())
    assert record.engine_info == {"version": "0.5.23", "context_length": 2048}


@pytest.mark.parametrize("levels", [20, 500, 5000])
def test_a_card_that_is_nested_too_deeply_is_refused(levels: int) -> None:
    text = RECORD.to_json().replace(
        b'"max_model_len": 2048', b'"x": ' + b"[" * levels + b"]" * levels
    )
    with pytest.raises(DiscoveryError):
        Record.from_json(text)


def test_a_card_of_any_form_is_kept() -> None:
    card: Json = {"id": "a", "permission": [{"allow": True, "x": None, "y": 1.5}], "parent": None}
    record = replace(RECORD, model_info={"a": card, "b": "text"})
    assert Record.from_json(record.to_json()) == record


def test_numbers_that_json_does_not_allow_are_none_in_a_card() -> None:
    text = RECORD.to_json().replace(b"2048", b"NaN")
    assert Record.from_json(text).model_info == {"a": {"id": "a", "max_model_len": None}}
    text = RECORD.to_json().replace(b"2048", b"1e999")
    assert Record.from_json(text).model_info == {"a": {"id": "a", "max_model_len": None}}


def test_a_record_over_the_limit_is_refused() -> None:
    with pytest.raises(DiscoveryError, match="larger than"):
        Record.from_json(RECORD.to_json() + b" " * MAX_BYTES)


def test_a_field_that_occurs_twice_is_refused() -> None:
    text = RECORD.to_json().replace(b'"id": ', b'"id": 7, "id": ', 1)
    with pytest.raises(DiscoveryError, match="occurs twice"):
        Record.from_json(text)


def test_a_model_that_is_listed_twice_is_one() -> None:
    content = json.loads(RECORD.to_json()) | {"models": ["a", "b", "a"]}
    assert Record.from_json(json.dumps(content).encode()).models == ("a", "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": "abc"}, "models must be an array of names, not 'abc'"),
        ({"models": ["a", 3]}, "models has a name that must be a string"),
        ({"id": "7"}, "id must be an integer from 1 to 2^64-1, not '7'"),
        ({"role": "cook"}, "role must be one of worker, frontend, exporter, not 'cook'"),
        ({"since": []}, "since must be a Unix time in seconds, not an array"),
        ({"request_url": "nowhere"}, "request_url must be null or http://HOST:PORT"),
        ({"model_info": {"a": "\ud800"}}, "model_info has an unpaired surrogate: '\\ud800'"),
    ],
)
def test_the_message_names_the_field_and_its_value(change: dict[str, object], message: str) -> None:
    content = json.loads(RECORD.to_json()) | change
    with pytest.raises(DiscoveryError) as caught:
        Record.from_json(json.dumps(content).encode())
    assert message in str(caught.value)
    assert str(caught.value).isascii()


def test_a_field_that_is_missing_is_named() -> None:
    content = json.loads(RECORD.to_json())
    del content["namespace"]
    with pytest.raises(DiscoveryError, match="namespace is missing"):
        Record.from_json(json.dumps(content).encode())


# Written by version 1, before records had a version.
FIRST_VERSION = (
    b'{"role": "worker", "id": 18446744073709551615, "namespace": "dynamo", '
    b'"component": "backend", "endpoint": "generate", "models": ["a", "b"], '
    b'"mode": "aggregated", "engine": "sglang", "request_url": "http://127.0.0.1:1", '
    b'"system_url": "http://127.0.0.1:8081", "bootstrap": null, '
    b'"model_info": {"a": {"id": "a", "max_model_len": 2048}}, '
    b'"engine_info": {"version": "0.5.23", "total_kv_blocks": 8192}, '
    b'"state": "ready", "since": 12.5}\n'
)


def test_a_record_of_the_first_version_is_read() -> None:
    record = Record.from_json(FIRST_VERSION)
    assert record == Record(
        role=Role.WORKER,
        id=2**64 - 1,
        namespace="dynamo",
        component="backend",
        endpoint="generate",
        models=("a", "b"),
        engine="sglang",
        request_url="http://127.0.0.1:1",
        system_url="http://127.0.0.1:8081",
        model_info={"a": {"id": "a", "max_model_len": 2048}},
        engine_info={"version": "0.5.23", "total_kv_blocks": 8192},
        state=State.READY,
        since=12.5,
        version=1,
    )
    assert record.unusable_reason is None
    assert not record.stream_usage


def later(**changes: object) -> Record:
    content = json.loads(RECORD.to_json()) | {"version": VERSION + 1, "zone": {"a": [1]}} | changes
    return Record.from_json(json.dumps(content).encode())


def test_a_record_of_the_next_version_is_read() -> None:
    assert later() == replace(RECORD, version=VERSION + 1)
    assert later().unusable_reason is None


@pytest.mark.parametrize("state", ["unresponsive", "restarting"])
def test_states_of_version_3_need_no_later_reader(state: str) -> None:
    """A reader of version 2 shows such a record by its rule for unknown states."""
    text = replace(RECORD, state=State(state)).to_json()
    assert json.loads(text)["min_version"] == 1
    assert json.loads(text)["version"] == 3
    assert Record.from_json(text).state is State(state)


@pytest.mark.parametrize(("name", "value"), [("role", "planner"), ("state", "sleeping")])
def test_a_value_that_a_later_version_added_makes_the_record_unusable(
    name: str, value: str
) -> None:
    record = later(**{name: value})
    assert getattr(record, name) == value
    assert record.id == RECORD.id
    assert record.unusable_reason == f"its {name} {value!r} is unknown"


def test_a_record_that_needs_a_later_reader_is_visible_and_unusable() -> None:
    record = later(min_version=VERSION + 1, models={"a": {}}, request_url=["x"], since="now")
    assert (record.role, record.id, record.system_url) == (Role.WORKER, RECORD.id, None)
    assert record.models == ()
    assert record.unusable_reason == (
        f"its record needs a reader of version {VERSION + 1}, not {VERSION}"
    )


def test_a_record_that_needs_a_later_reader_needs_an_identity() -> None:
    with pytest.raises(DiscoveryError, match="id must be"):
        later(min_version=VERSION + 1, id="seven")


def test_a_url_with_a_slash_at_its_end_is_the_same_without() -> None:
    text = RECORD.to_json().replace(b'"http://127.0.0.1:1"', b'"http://127.0.0.1:1/"')
    assert Record.from_json(text) == RECORD
