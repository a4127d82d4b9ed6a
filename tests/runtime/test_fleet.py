"""The index of the processes in discovery."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynamometer.runtime.fleet import Change, Fleet
from dynamometer.runtime.record import VERSION, Json, Record, Role, State


def worker(number: int, *models: str, **changes: object) -> Record:
    made = Record(
        role=Role.WORKER,
        id=number,
        namespace="dynamo",
        component="backend",
        models=models or ("m",),
        request_url=f"http://127.0.0.1:{number}",
        state=State.READY,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def ids(records: tuple[Record, ...]) -> list[int]:
    return [record.id for record in records]


def test_processes_of_every_role_and_state_are_there() -> None:
    fleet = Fleet()
    others = [
        worker(2, state=State.STARTING),
        worker(3, role=Role.EXPORTER),
        worker(4, role=Role.FRONTEND),
        worker(5, role="planner", version=VERSION + 1),
        worker(6, min_version=VERSION + 1),
    ]
    fleet.update([worker(1), *others])
    assert set(fleet.records) == {1, 2, 3, 4, 5, 6}
    assert ids(fleet.ready) == [1]


@pytest.mark.parametrize("state", sorted(set(State) - {State.READY}))
def test_only_models_of_ready_workers_are_served(state: State) -> None:
    fleet = Fleet()
    fleet.update([worker(1)])
    fleet.update([worker(1, state=state), worker(2, "other"), worker(4, role=Role.FRONTEND)])
    assert fleet.models == {"other": {"id": "other", "object": "model"}}
    assert fleet.workers("m") == ()
    assert fleet.resolve("m") == "m"
    assert fleet.resolve("n") is None


def test_a_models_card_is_its_workers() -> None:
    fleet = Fleet()
    card = {"id": "m", "max_model_len": 2048}
    fleet.update([worker(1, model_info={"m": card})])
    assert fleet.models == {"m": card}


@pytest.mark.parametrize("card", [None, 5, "text", []])
def test_a_card_that_is_not_an_object_is_not_shown(card: Json) -> None:
    fleet = Fleet()
    fleet.update([worker(1, model_info={"m": card})])
    assert fleet.models["m"] == {"id": "m", "object": "model"}


def test_a_namespace_does_not_serve_the_workers_of_others() -> None:
    fleet = Fleet(namespace="mine")
    fleet.update([worker(1), worker(2, namespace="mine")])
    assert ids(fleet.ready) == [2]
    assert set(fleet.records) == {1, 2}


def test_workers_are_indexed_by_model_and_mode() -> None:
    fleet = Fleet()
    fleet.update([worker(3), worker(1), worker(2, mode="prefill"), worker(4, "n", mode="decode")])
    assert ids(fleet.workers("m")) == [1, 3]
    assert ids(fleet.workers("m", "prefill")) == [2]
    assert fleet.workers("m", "decode") == ()
    assert ids(fleet.workers("n", "decode")) == [4]
    assert list(fleet.models) == ["m"]


def test_an_index_that_did_not_change_is_the_same_object() -> None:
    fleet = Fleet()
    fleet.update([worker(1), worker(2)])
    before = fleet.workers("m")
    fleet.update([worker(1), worker(2), worker(3, "n")])
    assert fleet.workers("m") is before


def test_consumers_are_called_with_what_changed() -> None:
    fleet = Fleet()
    changes: list[Change] = []
    fleet.on_change(changes.append)
    fleet.update([worker(1), worker(2, "n", state=State.STARTING)])
    fleet.update([worker(1), worker(2, "n", state=State.STARTING)])
    fleet.update([worker(1), worker(2, "n")])
    fleet.update([worker(2, "n", engine_info={"max_sequences": 8}), worker(3, role="exporter")])
    first, second, third = changes
    assert sorted(record.id for record in first.joined) == [1, 2]
    assert first.models == first.served == {"m"}
    assert ids(second.changed) == [2]
    assert second.models == second.served == {"n"}
    assert second.unserved == set()
    assert (ids(third.joined), ids(third.changed), ids(third.left)) == ([3], [2], [1])
    assert third.models == {"m", "n"}
    assert third.unserved == {"m"}
    assert third.served == set()


@pytest.mark.parametrize(
    ("registered", "asked", "found"),
    [
        (["base"], "base", "base"),
        (["base"], "base:adapter", "base"),
        (["base"], "base:a:b", "base"),
        (["base"], "base:", "base"),
        (["base"], "other:adapter", None),
        (["base"], ":base", None),
        (["base"], "bas", None),
        (["base"], "", None),
        (["s3://x/y"], "s3://x/y", "s3://x/y"),
        (["s3://x/y"], "s3://x/y:adapter", "s3://x/y"),
        (["s3://x/y"], "s3", None),
        (["a", "a:b"], "a:b", "a:b"),
        (["a", "a:b"], "a:b:c", "a:b"),
        (["a", "a:b"], "a:c", "a"),
        (["adapter", "base"], "adapter", "adapter"),
    ],
)
def test_a_name_means_the_longest_registered_one(
    registered: list[str], asked: str, found: str | None
) -> None:
    fleet = Fleet()
    fleet.update([worker(1, *registered)])
    assert fleet.resolve(asked) == found


def side(number: int, mode: str, *models: str, **changes: object) -> Record:
    """Return a worker of a mode that can be paired."""
    bootstrap = "127.0.0.1:8998" if mode == "prefill" else None
    return worker(number, *models, **{"mode": mode, "bootstrap": bootstrap} | changes)


@pytest.mark.parametrize("prefill", [None, *State])
@pytest.mark.parametrize("decode", [None, *State])
def test_a_model_is_served_in_pairs_when_both_sides_are_ready(
    prefill: State | None, decode: State | None
) -> None:
    fleet = Fleet()
    fleet.update([side(1, "prefill"), side(2, "decode")])
    assert fleet.missing_reason("n") == "no worker serves 'n' now"
    states = ((1, "prefill", prefill), (2, "decode", decode))
    records = [side(number, mode, state=state) for number, mode, state in states if state]
    fleet.update([*records, worker(3, "n")])
    served = prefill is decode is State.READY
    assert ("m" in fleet.models) is served
    assert (fleet.pairs("m") is not None) is served
    if served:
        return
    reason = fleet.missing_reason("m")
    others = [(mode, state) for _, mode, state in states if state not in (None, State.READY)]
    if len(others) == 2:
        assert reason == f"no worker serves 'm' now (decode: 1 {decode}; prefill: 1 {prefill})"
    elif State.READY in (prefill, decode):
        ready, missing = ("prefill", "decode") if prefill is State.READY else ("decode", "prefill")
        assert reason == (
            f"'m' has 1 ready {ready} worker and no ready {missing} worker (1 {others[0][1]})"
            if others
            else f"'m' has only {ready} workers, which cannot answer a request alone"
        )
    else:
        shown = f" ({others[0][0]}: 1 {others[0][1]})" if others else ""
        assert reason == f"no worker serves 'm' now{shown}"


def test_a_reason_has_the_numbers_of_both_sides() -> None:
    fleet = Fleet()
    starting = side(3, "prefill", state=State.STARTING)
    fleet.update([side(1, "decode"), side(2, "decode"), starting])
    reason = "has 2 ready decode workers and no ready prefill worker (1 starting)"
    assert fleet.missing_reason("m") == f"'m' {reason}"
    assert fleet.missing_reason(None) == f"this deployment {reason}"
    failed = side(5, "decode", state=State.FAILED)
    fleet.update([side(1, "decode"), starting, worker(4, state=State.RESTARTING), failed])
    assert fleet.missing_reason("m") == (
        "'m' has 1 ready decode worker and no ready prefill worker "
        "(aggregated: 1 restarting; decode: 1 failed; prefill: 1 starting)"
    )


def test_an_aggregated_worker_serves_its_model_alone() -> None:
    fleet = Fleet()
    changes: list[Change] = []
    fleet.on_change(changes.append)
    sides = [side(1, "prefill"), side(2, "decode", model_info={"m": {"id": "m", "in": "pairs"}})]
    fleet.update([*sides, worker(3)])
    assert fleet.pairs("m") is None
    assert ids(fleet.answering("m")) == [3]
    assert fleet.models == {"m": {"id": "m", "object": "model"}}
    fleet.update([*sides, worker(3, state=State.DRAINING)])
    pairs = fleet.pairs("m")
    assert pairs is not None
    assert (ids(pairs.prefill), ids(pairs.decode)) == ([1], [2])
    assert ids(fleet.answering("m")) == [2]
    assert fleet.models == {"m": {"id": "m", "in": "pairs"}}
    fleet.update(sides[:1])
    assert [(set(change.served), set(change.unserved)) for change in changes] == [
        ({"m"}, set()),
        (set(), set()),
        (set(), {"m"}),
    ]


BLOCKS = {"kv_block_size": 16, "kv_cache_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("prefill", "decode", "difference"),
    [
        ({}, {}, None),
        ({"engine_info": BLOCKS}, {"engine_info": BLOCKS}, None),
        ({"engine_info": BLOCKS}, {}, None),
        ({"engine_info": {"kv_block_size": 16}}, {"engine_info": {"kv_cache_dtype": "x"}}, None),
        ({"engine_info": {"version": "1"}}, {"engine_info": {"version": "2"}}, None),
        (
            {"engine_info": BLOCKS},
            {"engine_info": BLOCKS | {"kv_block_size": 1}},
            f"kv_block_size is 16 at prefill worker {1:016x} and 1 at decode worker {2:016x}",
        ),
        (
            {"engine_info": {"kv_cache_dtype": "bf"}},
            {"engine_info": {"kv_cache_dtype": "f8"}},
            f"kv_cache_dtype is 'bf' at prefill worker {1:016x} and 'f8' at decode worker {2:016x}",
        ),
        (
            {"namespace": "a"},
            {"namespace": "b"},
            f"namespace is 'a' at prefill worker {1:016x} and 'b' at decode worker {2:016x}",
        ),
        (
            {"engine": "sglang"},
            {"engine": "mocker"},
            f"engine is 'sglang' at prefill worker {1:016x} and 'mocker' at decode worker {2:016x}",
        ),
        (
            {"bootstrap": None},
            {},
            f"the record of prefill worker {1:016x} has no bootstrap address",
        ),
    ],
)
def test_only_workers_that_fit_are_paired(
    prefill: dict[str, object], decode: dict[str, object], difference: str | None
) -> None:
    fleet = Fleet()
    fleet.update([side(1, "prefill", **prefill), side(2, "decode", **decode)])
    if difference is None:
        assert fleet.pairs("m") is not None
        assert list(fleet.models) == ["m"]
        return
    assert fleet.pairs("m") is None
    assert fleet.models == {}
    sides = "has 1 ready prefill worker and 1 ready decode worker that do not fit"
    assert fleet.missing_reason("m") == f"'m' {sides}: {difference}"
    assert fleet.missing_reason(None) == f"this deployment {sides}: {difference}"


def test_sides_of_different_models_are_not_paired() -> None:
    fleet = Fleet()
    fleet.update([side(1, "prefill", "m"), side(2, "decode", "n")])
    assert fleet.models == {}
    assert fleet.missing_reason(None) == (
        "this deployment has 1 ready prefill worker and 1 ready decode worker that do not fit: "
        f"prefill worker {1:016x} and decode worker {2:016x} have no model in common"
    )


def test_the_reason_is_the_smallest_obstacle() -> None:
    fleet = Fleet()
    fleet.update(
        [
            side(1, "prefill", namespace="other"),
            side(2, "prefill", engine_info={"kv_block_size": 16}),
            side(3, "decode", engine_info={"kv_block_size": 1}),
        ]
    )
    assert fleet.missing_reason("m") == (
        "'m' has 2 ready prefill workers and 1 ready decode worker that do not fit: "
        f"kv_block_size is 16 at prefill worker {2:016x} and 1 at decode worker {3:016x}"
    )


def test_each_decode_worker_has_the_prefill_workers_that_fit_it() -> None:
    fleet = Fleet()
    wide, narrow = {"kv_block_size": 16}, {"kv_block_size": 1}
    records = [
        side(1, "prefill", engine_info=wide),
        side(2, "prefill", engine_info=narrow),
        side(3, "prefill"),
        side(4, "prefill", namespace="other", engine_info=wide),
        side(5, "prefill", namespace="third"),
        side(11, "decode", engine_info=wide),
        side(12, "decode", engine_info=narrow),
        side(13, "decode"),
        side(14, "decode", namespace="other", engine_info=wide),
        side(15, "decode", namespace="fourth"),
    ]
    fleet.update(reversed(records))
    pairs = fleet.pairs("m")
    assert pairs is not None
    assert ids(pairs.prefill) == [1, 2, 3, 4]
    assert ids(pairs.decode) == [11, 12, 13, 14]
    assert {one.id: ids(pairs.prefill_for(one)) for one in records[5:]} == {
        11: [1, 3],
        12: [2, 3],
        13: [1, 2, 3],
        14: [4],
        15: [],
    }


def test_pairs_that_did_not_change_are_the_same_object() -> None:
    fleet = Fleet()
    records = [side(1, "prefill"), side(2, "decode")]
    fleet.update(records)
    before, prefill = fleet.pairs("m"), fleet.workers("m", "prefill")
    fleet.update([*records, worker(3, "n"), side(4, "decode", state=State.STARTING)])
    assert fleet.pairs("m") is before
    fleet.update([*records, side(4, "decode")])
    assert fleet.pairs("m") is not before
    assert fleet.workers("m", "prefill") is prefill


def test_a_worker_of_another_node_gets_no_requests() -> None:
    fleet = Fleet()
    nodes = {"nodes": 2, "group": "g"}
    follower = worker(1, node_rank=1, request_url=None, **nodes)
    fleet.update([follower, worker(2, "n", node_rank=1, **nodes), worker(3, "o", **nodes)])
    assert ids(fleet.ready) == ids(fleet.workers_of_any_state) == [3]
    assert list(fleet.models) == ["o"]
    assert set(fleet.records) == {1, 2, 3}


@pytest.mark.parametrize(
    ("modes", "reason"),
    [
        ([], "no worker serves 'm' now"),
        (["prefill"], "'m' has only prefill workers, which cannot answer a request alone"),
        (["encode"], "'m' has only encode workers, which cannot answer a request alone"),
        (
            ["encode", "decode", "encode"],
            "'m' has only decode and encode workers, which cannot answer a request alone",
        ),
    ],
)
def test_a_model_that_is_not_served_has_a_reason(modes: list[str], reason: str) -> None:
    fleet = Fleet()
    fleet.update([worker(1), worker(2, "n")])
    others = [worker(number, mode=mode) for number, mode in enumerate(modes, 3)]
    fleet.update([worker(2, "n"), *others])
    assert fleet.missing_reason("m") == reason


def test_a_reason_names_the_states_of_workers_that_are_not_ready() -> None:
    fleet = Fleet()
    fleet.update([worker(1)])
    states = (State.STARTING, State.FAILED, State.STARTING)
    fleet.update([worker(number, state=state) for number, state in enumerate(states, 2)])
    assert fleet.missing_reason("m") == "no worker serves 'm' now (1 failed, 2 starting)"
    assert fleet.missing_reason("n") == "no worker serves 'n' now"
    assert fleet.missing_reason(None) == "no worker is ready (1 failed, 2 starting)"


def test_a_fleet_without_workers_that_answer_has_a_reason() -> None:
    fleet = Fleet()
    assert fleet.missing_reason(None) == "no worker is ready"
    fleet.update([worker(1, mode="prefill")])
    assert fleet.missing_reason(None) == (
        "this deployment has only prefill workers, which cannot answer a request alone"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": "planner"}, "its role 'planner' is unknown"),
        ({"state": "sleeping"}, "its state 'sleeping' is unknown"),
        ({"min_version": VERSION + 1},
         f"its record needs a reader of version {VERSION + 1}, not {VERSION}"),
        ({"engine": "unheard-of"}, "its engine 'unheard-of' is unknown"),
    ],
)  # fmt: skip
def test_a_process_that_this_version_cannot_use_is_there_and_gets_no_requests(
    changes: dict[str, object], reason: str
) -> None:
    fleet = Fleet(engines={"sglang"})
    record = worker(1, version=VERSION + 1, **changes)
    fleet.update([record, worker(2, "n", engine="sglang"), worker(3, "o")])
    assert fleet.records[1] == record
    assert fleet.unusable_reason(record) == reason
    assert ids(fleet.ready) == [2, 3]
    assert fleet.workers("m") == ()
